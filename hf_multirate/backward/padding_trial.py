"""Trial of padding: whether the output of a prefix at the tokens of a row depends on the padding beside them.

In most models attention gives padded positions the weight 0, so rows can be kept without them. Convolutions over
tokens and attention through averages over segments are exceptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_multirate.backward.cached_prefix import Prefix
from hf_multirate.backward.prefix_forward import PrefixForward
from hf_multirate.backward.prefix_trial import close, plain
from hf_multirate.backward.row_keys import MASK
from hf_multirate.model.evaluation_mode import evaluating
from hf_multirate.model.hooks import tensors_in
from hf_multirate.model.random_state import random_state_restored


@torch.no_grad()
def padding_matters(prefix: Prefix, forward: PrefixForward, inputs: Mapping[str, Any]) -> bool:
    """Whether rows of ``prefix`` have to be kept whole.

    The longest row runs with its last token masked, and without it. The output of the boundary at all other tokens
    must be the same. Then the blocks above run once more with zeros at the masked position.

    Args:
        prefix: The prefix.
        forward: Its forward passes.
        inputs: Arguments of the owner by name, with an ``attention_mask`` of shape (rows, positions).
    """
    mask: Tensor = inputs[MASK]
    row = int((mask != 0).sum(dim=1).argmax())
    width = int((mask[row] != 0).nonzero()[-1:].sum()) + 1
    if width == 1:
        return False  # no row has two tokens, so no row is padded by another
    masked = _cut(inputs, mask.shape, row, width)
    masked[MASK][:, -1] = 0
    device = mask.device.type
    with (
        random_state_restored(prefix.tensors.values()),
        evaluating(prefix.owner),
        torch.autocast(device, enabled=False),
    ):
        try:
            with forward.recording(2, lambda output: output) as whole:
                expected = prefix.owner.forward(**masked)
            with forward.recording(2, lambda output: output) as short:
                prefix.owner.forward(**_cut(inputs, mask.shape, row, width - 1))
            one, other = whole.output, short.output
            if one is None or other is None or one.shape[1:2] != (width,) or not close(one[:, :-1], other):
                return True
            zeros = one.clone()
            zeros[:, -1] = 0.0
            with forward.replaying(whole, zeros):
                found = prefix.owner.forward(**masked)
        except (IndexError, RuntimeError, ValueError):
            return True  # a model for rows of one width
    pairs = zip(_at_tokens(expected, width), _at_tokens(found, width), strict=True)
    return not all(close(first, second) for first, second in pairs)


def _cut(inputs: Mapping[str, Any], shape: torch.Size, row: int, width: int) -> dict[str, Any]:
    """The first ``width`` positions of one row of a batch with a mask of ``shape``, twice."""
    number, positions = shape
    cut = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or not value.dim():
            continue
        part = value[[row, row]] if value.shape[0] == number and (value.dim() > 1 or number != positions) else value
        if part.dim() > 1 and part.shape[1] == positions:
            part = part[:, :width]
        elif part.dim() == 1 and part.shape[0] == positions and number != positions:
            part = part[:width]
        cut[name] = part.clone()
    return cut


def _at_tokens(output: Any, width: int) -> list[Tensor]:
    """Tensors of an output, without the last of ``width`` positions."""
    found = tensors_in(plain(output))
    return [tensor[:, :-1] if tensor.dim() > 1 and tensor.shape[1] == width else tensor for tensor in found]
