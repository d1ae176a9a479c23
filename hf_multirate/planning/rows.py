"""The first rows of a batch, to count work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor


COUNTED_ROWS = 2
"""Rows of a batch that are really run: work grows with rows, and batch norm wants more than one."""


def few_rows(batch: Any) -> tuple[Any, float]:
    """`COUNTED_ROWS` rows of ``batch``, and how many times as many it has.

    Tensors with another first dimension than the first tensor, and everything else, go into the part as they are.

    Raises:
        ValueError: the batch has no rows.
    """
    rows = next((tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()), 0)
    if not rows:
        raise ValueError(f"a batch needs a tensor with rows, got {summary(batch)}: give tensors of one row or more.")
    count = min(rows, COUNTED_ROWS)

    def part(tensor: Tensor) -> Tensor:
        # A slice would hold, and count as, the memory of the whole batch.
        return torch.clone(tensor[:count] if tensor.dim() and tensor.shape[0] == rows else tensor)

    return recursively_apply(part, batch), rows / count


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def summary(batch: Any) -> str:
    """A batch as an error shows it: keys and types, not values."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return f"{{{', '.join(f'{key!r}: {_shape(value)}' for key, value in batch.items())}}}"


def _shape(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
