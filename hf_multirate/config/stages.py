"""Stages of a run: configurations that apply one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_multirate.config.validation import require_int, require_items, require_number, shown, wrong_type


if TYPE_CHECKING:
    from hf_multirate.config.config import MultirateConfig

PAIR = "a pair of a share of training and a MultirateConfig, as in (0.3, MultirateConfig())"


@dataclass(frozen=True)
class Stage:
    """A configuration that applies until a share of the steps of training.

    Attributes:
        until: Share of the steps at which the stage ends, above 0 and up to 1.
        config: The configuration of the stage.

    Raises:
        ValueError: ``until`` is out of range.
        TypeError: ``until`` is not a number.
    """

    until: float
    config: MultirateConfig

    def __post_init__(self) -> None:
        """Validate the share, and convert it to a plain number."""
        until = require_number("the end of a stage", self.until, "a share of training above 0 and up to 1")
        if not 0 < until <= 1:
            raise ValueError(f"the end of a stage must be a share of training above 0 and up to 1, got {until}.")
        object.__setattr__(self, "until", until)


def require_stages(value: Any) -> tuple[Stage, ...]:
    """Check a list of stages, or of pairs of a share and a configuration.

    Raises:
        TypeError: ``value`` is not such a list.
        ValueError: a share is out of range.
    """
    stages = []
    for item in require_items("stage_list, the stages of a run,", value, f"a list, each item {PAIR}"):
        if isinstance(item, Stage):
            stages.append(item)
        elif isinstance(item, (tuple, list)) and len(item) == 2:  # noqa: PLR2004
            stages.append(Stage(*item))
        else:
            wrong_type("each item of stage_list", PAIR, item)
    return tuple(stages)


def check_stages(stages: Sequence[Stage], kind: type, common: Mapping[str, Any], others: Sequence[str]) -> None:
    """Check the stages of a configuration.

    Args:
        stages: The stages.
        kind: The class of a configuration.
        common: Settings of the whole run: name -> value.
        others: Names of further settings of the whole configuration that are given.

    Raises:
        TypeError: the configuration of a stage has the wrong type.
        ValueError: the shares do not ascend to 1, or a stage has settings that stages do not support.
    """
    if others:
        raise ValueError(f"a configuration with stages has no {', '.join(others)}: give them to each stage.")
    shares = [stage.until for stage in stages]
    if any(later <= earlier for earlier, later in pairwise(shares)):
        raise ValueError(f"the ends of stages must ascend, got {shares}: give the stages in their order.")
    if shares[-1] != 1:
        raise ValueError(f"the last stage must end at 1, the end of training, got {shares}.")
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage.config, kind):
            wrong_type(f"the configuration of stage {number}", "a MultirateConfig", stage.config)
        _check_config(number, stage.config, common)


def _check_config(number: int, config: MultirateConfig, common: Mapping[str, Any]) -> None:
    unsupported = {
        "stages": bool(config.stage_list),
        "automatic periods": config.auto_periods is not None,
        "an activation cache on disk": config.activation_cache == "disk",
        "a random subset": any(group.random_subset is not None for group in config.groups),
    }
    for name, is_set in unsupported.items():
        if is_set:
            remedy = "use activation_cache='memory'" if "disk" in name else "give its rate groups a period"
            raise ValueError(f"stage {number} has {name}, which stages do not support: {remedy}.")
    differing = [name for name, value in common.items() if vars(config)[name] != value]
    if differing:
        values = ", ".join(f"{name} is {shown(vars(config)[name])} and {shown(common[name])}" for name in differing)
        raise ValueError(
            f"stage {number} has other settings of the whole run than the first stage: {values}. Give all stages the "
            "same value."
        )


def stage_ends(shares: Sequence[float], total_steps: int) -> tuple[int, ...]:
    """Number of steps after which each stage ends.

    >>> stage_ends([0.3, 1.0], 10)
    (3, 10)
    """
    return tuple(round(share * total_steps) for share in shares)


def ends_of_run(
    stages: Sequence[Stage], total_steps: int | None, warn: Callable[[str | None], None]
) -> tuple[int, ...]:
    """Number of steps before each stage and after the last; only 0 without stages.

    Args:
        stages: The stages.
        total_steps: Number of steps of the run.
        warn: Function that receives a warning, or None.

    Raises:
        ValueError: ``total_steps`` is missing or below 1.
        TypeError: ``total_steps`` is not an integer.
    """
    if not stages:
        return (0,)
    if total_steps is None:
        raise ValueError(
            "the configuration has stages, which end at shares of the steps of training, but total_steps is None: "
            "call attach(model, optimizer, total_steps=...)."
        )
    total = require_int("total_steps", total_steps, least=1, unit="steps")
    ends = (0, *stage_ends([stage.until for stage in stages], total))
    empty = [number for number, (begin, end) in enumerate(pairwise(ends), 1) if begin == end]
    warn(f"stages {empty} have no step, because the run has only {total} steps." if empty else None)
    return ends
