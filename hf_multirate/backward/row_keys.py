"""Keys of rows for the activation cache: a hash of the tensors that the model gets for a row, without padding."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128


MASK = "attention_mask"

NOT_INPUTS = ("labels", "label", "num_items_in_batch", "batch_size", "seq_len")
"""Arguments that blocks do not read, and sizes of the batch, which ModernBERT gets in transformers 4."""

MASK_DIM = 2

Place = slice | Tensor
"""Positions of the tokens of a row: a slice, or indices if there is padding in between."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch.

    Attributes:
        keys: Key of each row.
        places: Positions of the tokens of each row; None if rows are kept whole.
        width: Number of positions, padding included; 0 if rows are kept whole.
        signature: Names, types and sizes of the inputs, without the number of rows and positions.
    """

    keys: Sequence[bytes]
    places: Sequence[Place] | None
    width: int
    signature: str


def named_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of a call of ``module`` by name, without those that are None; None if they do not fit."""
    signature = inspect.signature(module.forward)
    try:
        named = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError:
        return None
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return {name: value for name, value in named.items() if value is not None and name not in NOT_INPUTS}


def rows_of(module: nn.Module, inputs: Mapping[str, Any], seed: bytes, *, padded: bool) -> Rows | None:
    """The rows of a batch; None if an argument is neither a tensor nor a plain value, as a key-value cache is.

    A tensor that has no entry for each row, such as a mask for all rows, is a part of the key of every row.

    Args:
        module: The module that gets the batch.
        inputs: The result of `named_inputs`.
        seed: A part of every key.
        padded: Whether ``attention_mask`` marks padding, which is left out.
    """
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in inputs.items() if name not in tensors}
    main = _main_input(module, tensors)
    if main is None or not all(isinstance(value, (bool, int, float, str)) for value in others.values()):
        return None
    number, width = main.shape[0], main.shape[1] if main.dim() >= MASK_DIM else 0
    mask = tensors.get(MASK)
    cut = padded and mask is not None and mask.shape == (number, width)
    places = _places(mask.cpu() != 0) if cut and mask is not None else None
    inner = {
        name: MASK_DIM if cut and tensor.shape[:MASK_DIM] == (number, width) else 1
        for name, tensor in tensors.items()
        # A vector with as many entries as there are positions may be one for all rows.
        if tensor.dim() and tensor.shape[0] == number and (tensor.dim() > 1 or tensor is main or number != width)
    }
    sizes = [(name, str(value.dtype), tuple(value.shape[inner.get(name, 0) :])) for name, value in tensors.items()]
    signature = repr((sizes, sorted(others.items())))
    start = xxh3_128(seed + signature.encode())
    for name in tensors.keys() - inner.keys():
        start.update(name.encode() + array_of(tensors[name]).tobytes())
    pieces = [(array_of(tensors[name]), dimension == MASK_DIM) for name, dimension in inner.items()]
    keys = [_key(start.copy(), row, None if places is None else places[row], pieces) for row in range(number)]
    return Rows(keys, places, width if cut else 0, signature)


def _key(key: xxh3_128, row: int, place: Place | None, pieces: Sequence[tuple[NDArray[np.uint8], bool]]) -> bytes:
    if isinstance(place, slice):
        key.update(f"{place.start}:{place.stop}".encode())
    elif place is not None:
        key.update(array_of(place).tobytes())
    for values, has_places in pieces:
        piece = values[row][place] if has_places else values[row]
        key.update(np.ascontiguousarray(piece).data)
    return key.digest()


def _main_input(module: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor whose first dimension counts the rows."""
    name = module.main_input_name if isinstance(module, PreTrainedModel) else ""
    return tensors.get(name, next((tensor for tensor in tensors.values() if tensor.dim()), None))


def array_of(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, as one more dimension: numpy has no bfloat16."""
    array: NDArray[np.uint8] = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    return array


def _places(real: Tensor) -> list[Place]:
    """The positions of the tokens of each row. The first one is a part of the key, as positions may count from it."""
    number, width = real.sum(dim=1), real.shape[1]
    first = real.int().argmax(dim=1)
    last = width - real.flip(1).int().argmax(dim=1)
    return [
        slice(begin, begin + count) if end - begin == count or not count else real[row].nonzero()[:, 0]
        for row, (begin, end, count) in enumerate(zip(first.tolist(), last.tolist(), number.tolist(), strict=True))
    ]
