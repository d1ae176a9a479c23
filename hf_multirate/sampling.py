"""A sample of the elements of large parameters, for inner products of which little more than the sign is needed."""

from __future__ import annotations

import torch
from torch import Tensor


SAMPLED = 1 << 15
"""Elements of a parameter that are looked back at, as far as `COLUMNS` allows."""

COLUMNS = 16
"""Least number of columns looked back at: a line of a cache, which is read as a whole anyway."""


def width(parameter: Tensor) -> int:
    """How many columns of ``parameter``, as a matrix of its rows, are looked back at; 0 for all of them.

    It follows from the whole shape of a sharded parameter.
    """
    if parameter.dim() <= 1 or parameter.numel() <= SAMPLED:
        return 0
    columns = parameter.numel() // parameter.shape[0]
    return min(columns, max(COLUMNS, columns * SAMPLED // parameter.numel()))


def sample(tensor: Tensor, width: int) -> Tensor:
    """The first ``width`` columns, 0 for all: all rows, because those of an embedding are rarely in use."""
    return tensor.flatten(1)[:, :width] if width else tensor


def extrapolation(parameter: Tensor) -> float:
    """Elements of ``parameter`` for each that is looked at."""
    columns = width(parameter)
    return parameter.numel() / (parameter.shape[0] * columns) if columns else 1.0


def real(tensor: Tensor) -> Tensor:
    """A view of ``tensor`` with real and imaginary parts in a dimension of their own, if it is complex."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
