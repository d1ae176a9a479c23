"""Choose the periods of blocks for a speed-up, from the cost model of the network."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.config import DEFAULT_PERIODS, MultirateConfig
from hf_multirate.config.rate_group import RateGroup, depth_ladder
from hf_multirate.model.blocks import ABOVE, block_of_parameter
from hf_multirate.model.cost_model import costs_by_depth, layers_of
from hf_multirate.model.partition import settle
from hf_multirate.model.period_search import expected_values, search_ladder, slowest, work_of
from hf_multirate.model.stacks import find_stack
from hf_multirate.model.unwrap import canonical_parameters


ROUNDING = 1e-9

NEAR = 1.01
"""Work of at most this share of the budget counts as within it."""

MOST, FEW = 0.5, 2
"""A block with more than this share of the work is named in a warning, in models of more blocks than this."""

logger = logging.getLogger(__name__)


def choose_periods(
    config: MultirateConfig, model: nn.Module, warn: Callable[[str], None] = logger.warning
) -> MultirateConfig:
    """``config`` with periods for ``model``; as it is if its periods are given and fit.

    The default ladder is shortened for a model with fewer blocks than it has parts.

    The value of a gradient is assumed to fall with depth, and work is that of the cost model: see
    `hf_multirate.model.period_search`. Nothing is measured, so the periods are the same in each run and process.

    Args:
        config: The configuration.
        model: The model, some parameters of which may be frozen.
        warn: Takes what a user should know of the choice.

    Raises:
        FrozenError: nothing is trainable. It is a `ValueError` too.
        ValueError: the groups do not fit the model.
    """
    if config.auto_periods is None:
        return _shortened(config, model, warn)
    # Without a trainable parameter there is no block: the group of all says so.
    groups = config.groups or block_groups(model) or (RateGroup("all", ".*"),)
    settled, members = settle(replace(config, groups=groups, auto_periods=None), model)
    names = [group.name for group in settled.groups]
    work = costs_by_depth(layers_of(model), [members[name] for name in names])
    shares = [share / (work[-1] or 1.0) for share in work]
    if len(names) == 1:
        warn("the model has one block with trainable parameters, so every step is a full step.")
        return settled
    periods = _search(config.auto_periods, shares, names, warn)
    chosen = [replace(group, period=period) for group, period in zip(settled.groups, periods, strict=True)]
    return replace(settled, groups=chosen)


def _shortened(config: MultirateConfig, model: nn.Module, warn: Callable[[str], None]) -> MultirateConfig:
    """``config``, or the first parts of the default ladder if ``model`` has too few blocks for all of them."""
    if list(config.groups) != depth_ladder(DEFAULT_PERIODS):
        return config
    try:
        blocks = len(find_stack(model).blocks)
    except ValueError:  # it has none, which the assignment of parameters says
        return config
    if blocks >= len(DEFAULT_PERIODS):
        return config
    periods = DEFAULT_PERIODS[:blocks]
    warn(
        f"the default ladder has the periods {list(DEFAULT_PERIODS)}, but the model has {blocks} blocks: the periods "
        f"{list(periods)} are used."
    )
    return replace(config, groups=depth_ladder(periods))


def block_groups(model: nn.Module) -> tuple[RateGroup, ...]:
    """A rate group for each block with a trainable parameter, from the top down.

    The head and the top block are one group: a head may have parameters that the loss does not use, such as a pooler,
    and a step with a gradient for none of the parameters would be no step.
    """
    owners = block_of_parameter(model)
    members: dict[str, list[str]] = {block: [] for block in owners.values()}
    for name, parameter in canonical_parameters(model).items():
        if parameter.requires_grad:
            members[owners[parameter]].append(name)
    blocks = [(block, names) for block, names in members.items() if names]
    if len(blocks) > 1 and blocks[0][0] == ABOVE:
        (head, above), (top, below), *rest = blocks
        blocks = [(f"{head}+{top}", above + below), *rest]
    return tuple(RateGroup(block, [f"^{re.escape(name)}$" for name in names]) for block, names in blocks)


def _search(
    wanted: AutoPeriods, work: Sequence[float], names: Sequence[str], warn: Callable[[str], None]
) -> tuple[int, ...]:
    """Periods for ``wanted``; ``work`` is that of a step with none of the groups live, with the first, and so on."""
    fixed, costs = work[0], [high - low for low, high in pairwise(work)]
    periods = search_ladder(expected_values(len(names)), costs, fixed, wanted.work + ROUNDING, wanted.max_period)
    least = work_of(costs, fixed, slowest(len(names), wanted.max_period))
    if least > NEAR * wanted.work:
        warn(
            f"requested speed-up {1 / wanted.work:.2f} is not reachable: the maximum is {1 / least:.2f}, with a "
            f"gradient of all blocks but the top one at every {wanted.max_period}th step, and is used."
        )
    share, name = max(zip(costs, names, strict=True))
    share /= sum(costs) or 1.0
    if share > MOST and len(names) > FEW:
        warn(
            f"block {name!r} has {share:.0%} of the work of backward, so there are few periods to choose from: name "
            "smaller blocks, as in MultirateConfig.auto(blocks=[...])."
        )
    return periods
