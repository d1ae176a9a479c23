"""Automatic periods: choose a period for each block so that a requested speed-up is reached."""

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
from hf_multirate.model.blocks import HEAD, block_of_parameter
from hf_multirate.model.cost_model import costs_by_depth, layers_of
from hf_multirate.model.partition import settle
from hf_multirate.model.period_search import expected_values, search_ladder, slowest, work_of
from hf_multirate.model.stacks import find_stack
from hf_multirate.model.unwrap import canonical_parameters


ROUNDING = 1e-9

BUDGET_TOLERANCE = 1.01
"""Factor by which the least possible work may exceed the requested work without a warning."""

LARGE_BLOCK_SHARE, FEW_BLOCKS = 0.5, 2
"""A block with a larger share of the work is named in a warning, if the model has more than `FEW_BLOCKS` blocks."""

logger = logging.getLogger(__name__)


def choose_periods(
    config: MultirateConfig, model: nn.Module, warn: Callable[[str], None] = logger.warning
) -> MultirateConfig:
    """Choose the periods of ``config`` for ``model``, if they are automatic.

    The default ladder is shortened for a model that has fewer blocks than the ladder has parts.

    The value of a gradient is assumed to fall with depth, and work is predicted by the cost model, see
    `hf_multirate.model.period_search`. Nothing is measured, so the periods are the same in every run and process.

    Args:
        config: The configuration.
        model: The model; some of its parameters may be frozen.
        warn: Function that receives warnings.

    Returns:
        The configuration with a period for each group with trainable parameters.

    Raises:
        FrozenError: nothing is trainable. It is a `ValueError` too.
        ValueError: the groups do not fit the model.
    """
    if config.auto_periods is None:
        return shortened(config, model, warn)
    # Without a trainable parameter there is no block; the group of all parameters then raises the error.
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


def shortened(
    config: MultirateConfig, model: nn.Module, warn: Callable[[str], None] = lambda text: None
) -> MultirateConfig:
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
    """Rate groups for automatic periods: one for each block with a trainable parameter, from the top down.

    The head and the top block form one group. A head may consist of parameters that the loss does not use, such as a
    pooler; a step with only the head live would then have no gradient.
    """
    owners = block_of_parameter(model)
    members: dict[str, list[str]] = {block: [] for block in owners.values()}
    for name, parameter in canonical_parameters(model).items():
        if parameter.requires_grad:
            members[owners[parameter]].append(name)
    blocks = [(block, names) for block, names in members.items() if names]
    if len(blocks) > 1 and blocks[0][0] == HEAD:
        (head, head_names), (top, top_names), *rest = blocks
        blocks = [(f"{head}+{top}", head_names + top_names), *rest]
    return tuple(RateGroup(block, [f"^{re.escape(name)}$" for name in names]) for block, names in blocks)


def _search(
    settings: AutoPeriods, work: Sequence[float], names: Sequence[str], warn: Callable[[str], None]
) -> tuple[int, ...]:
    """Search periods; ``work[i]`` is the work of a step at which the first ``i`` groups are live."""
    fixed, costs = work[0], [high - low for low, high in pairwise(work)]
    periods = search_ladder(expected_values(len(names)), costs, fixed, settings.work + ROUNDING, settings.max_period)
    least_work = work_of(costs, fixed, slowest(len(names), settings.max_period))
    if least_work > BUDGET_TOLERANCE * settings.work:
        warn(
            f"requested speed-up {1 / settings.work:.2f} is not reachable: the maximum is {1 / least_work:.2f}, with "
            f"all blocks but the top one live at every {settings.max_period}th step. This maximum is used."
        )
    share, name = max(zip(costs, names, strict=True))
    share /= sum(costs) or 1.0
    if share > LARGE_BLOCK_SHARE and len(names) > FEW_BLOCKS:
        warn(
            f"block {name!r} has {share:.0%} of the work of backward, which leaves few choices of periods: name "
            "smaller blocks, as in MultirateConfig.auto(blocks=[...])."
        )
    return periods
