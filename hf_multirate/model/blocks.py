"""Blocks of a model, for logs and automatic periods."""

from __future__ import annotations

from torch import nn

from hf_multirate.model.presets import parameter_levels
from hf_multirate.model.unwrap import canonical_parameters


EMBEDDINGS, HEAD = "embeddings", "head"
"""Names of the blocks for parameters below and above the stack."""


def blocks_of(model: nn.Module) -> dict[str, str]:
    """Block of each parameter by parameter name, in the order of ``model.named_parameters()``."""
    owners = block_of_parameter(model)
    return {name: owners[parameter] for name, parameter in canonical_parameters(model).items()}


def block_of_parameter(model: nn.Module) -> dict[nn.Parameter, str]:
    """Block of each parameter, from the top down: the head, the blocks of the stack, the embeddings.

    For a model without a stack, blocks are its children, which are assumed to be registered in forward order.
    """
    try:
        return _by_stack(model)
    except ValueError:  # the model has no stack
        return _by_child(model)


def _by_stack(model: nn.Module) -> dict[nn.Parameter, str]:
    stack, levels = parameter_levels(model)
    blocks = [f"block_{name}" for name in reversed(stack.blocks)]
    names = [HEAD, *blocks, EMBEDDINGS]
    # The sort is stable: it keeps the order of registration within a block.
    return {parameter: names[level] for parameter, level in sorted(levels.items(), key=lambda item: item[1])}


def _by_child(model: nn.Module) -> dict[nn.Parameter, str]:
    """Blocks from the children of the outermost module that has several children with parameters."""
    prefix, children = "", _children_with_parameters(model)
    while len(children) == 1:
        name, child = children[0]
        inner = _children_with_parameters(child)
        if not inner or list(child.parameters(recurse=False)):
            break
        prefix, children = f"{prefix}{name}.", inner
    owners: dict[nn.Parameter, str] = {}
    for name, child in reversed(children):
        # A tied parameter belongs to the deepest of its modules.
        owners |= dict.fromkeys(child.parameters(), f"{prefix}{name}")
    order = [f"{prefix}{name}" for name, _ in reversed(children)]
    rest = {p: EMBEDDINGS for p in model.parameters() if p not in owners}
    return dict(sorted(owners.items(), key=lambda item: order.index(item[1]))) | rest


def _children_with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]
