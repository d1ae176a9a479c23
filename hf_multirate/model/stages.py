"""Stages of a run on a model: the rate groups of each, and the learning rates and the speed-up of the whole run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.auto_periods import choose_periods
from hf_multirate.model.learning_rates import learning_rate_factors
from hf_multirate.model.partition import Partition, never_in, settle_with_never, without_never
from hf_multirate.model.unwrap import canonical_parameters


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SettledStage:
    """A stage on a model. A run without stages has one.

    Attributes:
        until: Share of the steps of training at which the stage ends.
        given: The configuration as given.
        config: The configuration with automatic periods chosen, and without frozen groups. Its groups with period
            ``"never"`` are idle for the whole stage, and live in another one.
        partition: The rate groups.
    """

    until: float
    given: MultirateConfig
    config: MultirateConfig
    partition: Partition


def settle_stages(
    config: MultirateConfig, model: nn.Module, warn: Callable[[str], None] = logger.warning
) -> tuple[SettledStage, ...]:
    """Assign parameters to the rate groups of each stage.

    Parameters whose groups have period ``"never"`` in all stages are in no group.

    Args:
        config: The configuration.
        model: The model.
        warn: Function that receives warnings.

    Raises:
        FrozenError: the groups of a stage would fit if fewer parameters were frozen.
        ValueError: the groups of a stage do not fit the model.
    """
    given = [(stage.until, stage.config) for stage in config.stage_list] or [(1.0, config)]
    settled = [settle_with_never(choose_periods(stage, model, warn), model) for _, stage in given]
    never = frozenset.intersection(*(never_in(*pair) for pair in settled))
    return tuple(
        SettledStage(until, stage, *without_never(*pair, never))
        for (until, stage), pair in zip(given, settled, strict=True)
    )


def factors_of_run(stages: Sequence[SettledStage], model: nn.Module) -> dict[nn.Parameter, float]:
    """Factor on the learning rate of each parameter, equal in all stages in which it gets a gradient.

    Raises:
        ValueError: a parameter has different factors, or the model has no head or depth for them.
    """
    factors: dict[nn.Parameter, float] = {}
    for number, stage in enumerate(stages, 1):
        members = stage.partition.parameters(model)
        idle = {p for group in stage.config.groups if group.is_never for p in members[group.name].values()}
        for parameter, factor in learning_rate_factors(stage.config, members, model).items():
            if parameter in idle:
                continue
            if factors.setdefault(parameter, factor) != factor:
                name = next(name for name, p in canonical_parameters(model).items() if p is parameter)
                raise ValueError(
                    f"the learning rate of {name!r} has the factor {factors[parameter]:g} in one stage and {factor:g} "
                    f"in stage {number}: give its rate groups the same lr_scale in all stages."
                )
    return factors


def shares_of(stages: Sequence[SettledStage]) -> list[float]:
    """Share of the steps of training in each stage."""
    ends = [0.0, *(stage.until for stage in stages)]
    return [end - start for start, end in pairwise(ends)]


def speedup_of_stages(stages: Sequence[SettledStage], speedups: Sequence[float]) -> float:
    """Speed-up of a run from the speed-ups of its stages."""
    if len(speedups) == 1:
        return speedups[0]
    return 1 / sum(share / speedup for share, speedup in zip(shares_of(stages), speedups, strict=True))
