"""Outputs that take the place of those of modules that do not run: of the same structure and size, without values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Empty:
    """A tensor without values. Its entries are NaN, so that a result that depends on them shows it.

    Attributes:
        shape: Size of the tensor in the recorded call.
        dtype: Its type.
        device: Its device.
        batched: Whether the first dimension counts the rows.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    batched: bool

    def has_positions(self, tail: tuple[int, ...]) -> bool:
        """Whether a dimension counts the positions, as the first one of a kept row of the size ``tail`` does."""
        return self.batched and tail[0] in self._inner(tail)

    def _inner(self, tail: tuple[int, ...]) -> tuple[int, ...]:
        """Dimensions that may count positions: the second one, and all of tensors like attention weights."""
        return self.shape[1:] if len(self.shape) > len(tail) + 1 else self.shape[1:2]

    def tensor(self, kept: Tensor, tail: tuple[int, ...]) -> Tensor:
        """A tensor for the rows of ``kept``, without memory of its own; ``tail`` is the size of a recorded row."""
        shape: tuple[int, ...] = self.shape
        if self.batched:
            inner = self._inner(tail)
            sizes = [kept.shape[1] if size == tail[0] else size for size in inner]
            shape = (kept.shape[0], *sizes, *self.shape[1 + len(inner) :])
        value = float("nan") if self.dtype.is_floating_point or self.dtype.is_complex else 0
        return torch.full((), value, dtype=self.dtype, device=self.device).expand(shape)


@dataclass(frozen=True)
class Input:
    """An input of the module that it returns: its place in the flat list of inputs."""

    place: int


@dataclass(frozen=True)
class Kept:
    """The kept output."""


@dataclass(frozen=True)
class Bias:
    """The position bias of T5, which its first block returns for the others."""

    attention: nn.Module
    mask: int | None = None
    """Place of the mask in the inputs, if the bias contains it, as in transformers 4."""

    def tensor(self, inputs: Sequence[Any], kept: Tensor) -> Tensor:
        """The bias for the width of ``kept``."""
        width = kept.shape[1]
        bias: Tensor = self.attention.compute_bias(width, width, device=kept.device)  # type: ignore[operator]
        return bias if self.mask is None else bias + inputs[self.mask]


@dataclass(frozen=True)
class Format:
    """Structure of the output of a module.

    Attributes:
        spec: The structure of dictionaries and tuples.
        leaves: The values: `Empty`, `Input`, `Kept` and `Bias`, and others as they are.
    """

    spec: TreeSpec
    leaves: Sequence[Any]

    @property
    def by_row(self) -> bool:
        """Whether the output has an entry for each row."""
        return any(isinstance(leaf, Kept) or (isinstance(leaf, Empty) and leaf.batched) for leaf in self.leaves)

    def fits_every_width(self, tail: tuple[int, ...]) -> bool:
        """Whether all new tensors have as many positions as the kept output, or none of them."""
        return all(leaf.has_positions(tail) for leaf in self.leaves if isinstance(leaf, Empty))

    def output(self, inputs: Sequence[Any], kept: Tensor, tail: tuple[int, ...]) -> Any:
        """An output for the rows of ``kept``; ``tail`` is the size of a kept row when the format was recorded."""
        return tree_unflatten([_value(leaf, inputs, kept, tail) for leaf in self.leaves], self.spec)


def _value(leaf: Any, inputs: Sequence[Any], kept: Tensor, tail: tuple[int, ...]) -> Any:
    if isinstance(leaf, Empty):
        return leaf.tensor(kept, tail)
    if isinstance(leaf, Bias):
        return leaf.tensor(inputs, kept)
    if isinstance(leaf, Input):
        return inputs[leaf.place]
    return kept if isinstance(leaf, Kept) else leaf


def format_of(module: nn.Module, inputs: Sequence[Any], output: Any, number: int, main: Tensor | None) -> Format:
    """The format of an output.

    Args:
        module: The module.
        inputs: Flat list of its inputs.
        output: Its output.
        number: Number of rows.
        main: The tensor in the output that is kept; None if none is.
    """
    leaves, spec = tree_flatten(output)
    return Format(spec, [_leaf(module, inputs, leaf, number, main) for leaf in leaves])


def _leaf(module: nn.Module, inputs: Sequence[Any], leaf: Any, number: int, main: Tensor | None) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf is main:
        return Kept()
    places = [place for place, value in enumerate(inputs) if value is leaf]
    if places:
        return Input(places[0])
    bias = _bias_of(module, inputs, leaf)
    if bias is not None:
        return bias
    return Empty(tuple(leaf.shape), leaf.dtype, leaf.device, bool(leaf.dim()) and leaf.shape[0] == number)


BIAS_DIM = 4
"""A position bias has dimensions for rows (one), heads, queries and keys."""


def _bias_of(module: nn.Module, inputs: Sequence[Any], leaf: Tensor) -> Bias | None:
    """The position bias of T5 that ``leaf`` is; None if it is none."""
    if leaf.dim() != BIAS_DIM or leaf.shape[2] != leaf.shape[3]:
        return None
    masks = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.dim() == BIAS_DIM]
    for part in module.modules():
        if type(part).__name__ in ("T5Attention", "MT5Attention") and vars(part)["has_relative_attention_bias"]:
            found = [Bias(part), *(Bias(part, place) for place in masks)]
            values = leaf.new_empty(1, leaf.shape[2])
            return next((bias for bias in found if torch.equal(bias.tensor(inputs, values), leaf)), None)
    return None
