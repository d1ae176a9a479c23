"""Shorthand for the stack of a model."""

from __future__ import annotations

from torch import nn

from hf_multirate.model.stacks import find_stack


def stack_of(model: nn.Module, place: str | None = None) -> tuple[str, int]:
    """Path of the stack with the most trainable parameters, and its number of blocks."""
    stack = find_stack(model, place)
    return stack.path, len(stack.blocks)
