"""Trial of a prefix on the first batch: whether the blocks above it need nothing from below but its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_multirate.backward.cached_prefix import Prefix
from hf_multirate.backward.prefix_forward import PrefixForward, Recording
from hf_multirate.backward.row_keys import Rows
from hf_multirate.model.evaluation_mode import evaluating
from hf_multirate.model.hooks import OwnHook, tensors_in
from hf_multirate.model.random_state import random_state_restored


TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
LOW_TOLERANCE = 2e-2
"""Largest difference of two passes, relative to the largest entry: for each precision, and for lower ones."""

OFF = "Set activation_cache=None."


def check_inputs(prefix: Prefix, inputs: Mapping[str, Any]) -> None:
    """Check the inputs of the owner of a prefix.

    Raises:
        NotImplementedError: an input requires a gradient, or is the output of an encoder for cross-attention.
    """
    owner = type(prefix.owner).__name__
    if "encoder_hidden_states" in inputs:
        raise NotImplementedError(
            f"activation_cache does not work with cross-attention: {owner} gets encoder_hidden_states, on which the "
            f"output of {prefix.name!r} depends. {OFF}"
        )
    for name, value in inputs.items():
        if any(tensor.requires_grad for tensor in tensors_in(value)):
            raise NotImplementedError(
                f"activation_cache does not work with {name!r} of {owner}, which requires a gradient: trained inputs, "
                f"such as soft prompts, change the output of {prefix.name!r}. {OFF}"
            )


@torch.no_grad()
def try_prefix(
    prefix: Prefix, forward: PrefixForward, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Rows
) -> Recording:
    """Compare two passes of a batch in evaluation mode, with the prefix and with its kept output.

    Returns:
        The recording of the first pass, with the output of the boundary.

    Raises:
        NotImplementedError: the results differ, or trained modules run below the boundary.
    """
    number, owner = len(rows.keys), type(prefix.owner).__name__
    with random_state_restored(prefix.tensors.values()), evaluating(prefix.owner):
        with forward.recording(number, lambda output: output) as recording, _trained_above(prefix, recording):
            expected = prefix.owner.forward(*args, **kwargs)
        kept = recording.output
        if kept is None:
            raise NotImplementedError(
                f"activation_cache needs the output of {prefix.name!r}, but {owner} does not call it. {OFF}"
            )
        _check_state(prefix, expected)
        padded = rows.places is not None and kept.shape[1:2] == (rows.width,)
        try:
            with forward.replaying(recording, _without_padding(kept, rows) if padded else kept.clone()):
                found = prefix.owner.forward(*args, **kwargs)
        except RuntimeError as error:
            raise NotImplementedError(
                f"activation_cache cannot skip the modules below {prefix.name!r}, because {owner} "
                f"uses their outputs otherwise ({error}). {OFF}"
            ) from error
        for one, other in zip(tensors_in(plain(expected)), tensors_in(plain(found)), strict=True):
            if not close(one, other, rows if padded else None):
                raise NotImplementedError(
                    f"activation_cache cannot skip the modules below {prefix.name!r}: the output of "
                    f"{owner} depends on them in another way too. Hidden states and attentions "
                    f"are such outputs, and so are connections from lower to upper blocks. {OFF}"
                )
    torch.clear_autocast_cache()  # it would keep copies of the weights that have no gradient
    return recording


def check_boundary(prefix: Prefix, expected: Tensor, found: Tensor, rows: Rows) -> None:
    """Check that the output of the boundary in training is that of evaluation mode.

    Raises:
        NotImplementedError: it is not.
    """
    padded = rows.places is not None and expected.shape[1:2] == (rows.width,)
    if not close(expected, found, rows if padded else None):
        raise NotImplementedError(
            f"activation_cache needs the same output of {prefix.name!r} at every pass, but in training it differs "
            "from that in evaluation mode. Switch off noise below it, such as dropout outside of modules, or set "
            "activation_cache=None."
        )


@contextmanager
def _trained_above(prefix: Prefix, recording: Recording) -> Iterator[None]:
    """A context in which trained modules may run only after the boundary."""

    def check(module: nn.Module, args: Any) -> None:
        del args
        if recording.output is None:
            raise NotImplementedError(
                f"activation_cache keeps the output of {prefix.name!r}, but a {type(module).__name__} that may get a "
                f"gradient runs before it. {OFF}"
            )

    with ExitStack() as stack:
        for module in prefix.trained_modules:
            handle = module.register_forward_pre_hook(OwnHook(check, module))
            stack.callback(handle.remove)
        yield


def _check_state(prefix: Prefix, output: Any) -> None:
    state = output.get("past_key_values") if isinstance(output, Mapping) else None
    if state is not None:
        raise ValueError(
            f"activation_cache does not work with the key-value cache that {type(prefix.owner).__name__} returns: it "
            "has an entry for each block. Set model.config.use_cache = False for training."
        )


def plain(output: Any) -> Any:
    """An output of transformers as a dictionary; any other output as it is."""
    return dict(output) if isinstance(output, Mapping) else output


def _without_padding(output: Tensor, rows: Rows) -> Tensor:
    """``output`` with zeros at padded positions, as a batch of kept rows has."""
    kept = torch.zeros_like(output)
    for row, place in enumerate(rows.places or ()):
        kept[row][place] = output[row][place]
    return kept


def close(one: Tensor, other: Tensor, rows: Rows | None = None) -> bool:
    """Whether two results are equal to rounding, at the positions of tokens if ``rows`` says where they are."""
    if one.shape != other.shape:
        return False
    if rows is not None and one.shape[:2] == (len(rows.keys), rows.width):
        one, other = _without_padding(one, rows), _without_padding(other, rows)
    if not one.is_floating_point():
        return torch.equal(one, other)
    scale = one.abs().max().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=TOLERANCE.get(one.dtype, LOW_TOLERANCE) * max(scale, 1e-3))
