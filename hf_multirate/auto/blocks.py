"""The blocks of a model that automatic training tells apart, from the top down."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from hf_multirate.config import MultirateConfig
from hf_multirate.groups import RateGroup
from hf_multirate.names import named
from hf_multirate.presets import block_paths, stack_of, top
from hf_multirate.worth import ABOVE, BELOW


def resolved(config: MultirateConfig, model: nn.Module) -> MultirateConfig:
    """``config`` with the blocks of ``model`` as its groups, if it has a budget and no groups of its own."""
    if config.budget is None or config.groups:
        return config
    return replace(config, groups=block_groups(model))


def block_groups(model: nn.Module) -> tuple[RateGroup, ...]:
    """A rate group for each block with a trainable parameter: the head, the blocks of the stack, what lies below.

    A model without a stack of like blocks has its children instead, taken to be registered in forward order.
    """
    trainable = {name: p for name, p in named(model).items() if p.requires_grad}
    try:
        owners = _by_stack(model)
    except ValueError:  # it has none
        owners = _by_child(model)
    members: dict[str, list[str]] = {}
    for name, parameter in trainable.items():
        members.setdefault(owners[parameter], []).append(name)
    order = dict.fromkeys(owners.values())
    return tuple(
        RateGroup(block, [f"^{re.escape(name)}$" for name in members[block]], 1) for block in order if block in members
    )


def _by_stack(model: nn.Module) -> dict[nn.Parameter, str]:
    """Parameter -> block, blocks in order from the top."""
    path, number = stack_of(model)
    paths = block_paths(model.get_submodule(path))
    last = set(model.get_submodule(path).get_submodule(paths[-1]).parameters())
    head = top(model, 1) - last
    owners = {p: ABOVE for p in model.parameters() if p in head}
    for count in range(1, number + 1):
        for parameter in top(model, count):
            owners.setdefault(parameter, f"block_{paths[-count]}")
    return {**owners, **{p: BELOW for p in model.parameters() if p not in owners}}


def _by_child(model: nn.Module) -> dict[nn.Parameter, str]:
    """As `_by_stack`, from the children of the first module inside that has more than one with parameters."""
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
