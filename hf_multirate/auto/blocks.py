"""The blocks of a model as rate groups, for automatic training."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from hf_multirate.blocks import owners_of
from hf_multirate.config import MultirateConfig
from hf_multirate.groups import RateGroup
from hf_multirate.names import named


def resolved(config: MultirateConfig, model: nn.Module) -> MultirateConfig:
    """``config`` with the blocks of ``model`` as its groups, if it has a budget and no groups of its own."""
    if config.budget is None or config.groups:
        return config
    return replace(config, groups=block_groups(model))


def block_groups(model: nn.Module) -> tuple[RateGroup, ...]:
    """A rate group for each block with a trainable parameter, from the top down."""
    owners = owners_of(model)
    members: dict[str, list[str]] = {block: [] for block in owners.values()}
    for name, parameter in named(model).items():
        if parameter.requires_grad:
            members[owners[parameter]].append(name)
    return tuple(
        RateGroup(block, [f"^{re.escape(name)}$" for name in names], 1) for block, names in members.items() if names
    )
