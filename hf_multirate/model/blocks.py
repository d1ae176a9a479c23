"""The blocks of a model, as logs and automatic periods name them."""

from __future__ import annotations

from torch import nn

from hf_multirate.model.presets import parameter_levels
from hf_multirate.model.unwrap import canonical_parameters


BELOW, ABOVE = "embeddings", "head"
"""Blocks of what lies below the stack, and of what is above it."""


def blocks_of(model: nn.Module) -> dict[str, str]:
    """Parameter name -> its block, in the order of ``model.named_parameters()``."""
    owners = block_of_parameter(model)
    return {name: owners[parameter] for name, parameter in canonical_parameters(model).items()}


def block_of_parameter(model: nn.Module) -> dict[nn.Parameter, str]:
    """Parameter -> its block, blocks in order from the top down: the head, those of the stack, what lies below.

    A model without a stack has its children instead, taken to be registered in forward order.
    """
    try:
        return _by_stack(model)
    except ValueError:  # it has none
        return _by_child(model)


def _by_stack(model: nn.Module) -> dict[nn.Parameter, str]:
    stack, levels = parameter_levels(model)
    blocks = [f"block_{name}" for name in reversed(stack.blocks)]
    names = [ABOVE, *blocks, BELOW]
    # Sorting keeps the order of registration within a block.
    return {parameter: names[level] for parameter, level in sorted(levels.items(), key=lambda item: item[1])}


def _by_child(model: nn.Module) -> dict[nn.Parameter, str]:
    """From the children of the first module inside that has more than one with parameters."""
    prefix, children = "", _owning(model)
    while len(children) == 1 and _owning(children[0][1]) and not list(children[0][1].parameters(recurse=False)):
        prefix += f"{children[0][0]}."
        children = _owning(children[0][1])
    owners: dict[nn.Parameter, str] = {}
    for name, child in reversed(children):
        # A tied parameter lies as deep as the deepest of its places.
        owners |= dict.fromkeys(child.parameters(), f"{prefix}{name}")
    order = [f"{prefix}{name}" for name, _ in reversed(children)]
    rest = {p: BELOW for p in model.parameters() if p not in owners}
    return dict(sorted(owners.items(), key=lambda item: order.index(item[1]))) | rest


def _owning(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
