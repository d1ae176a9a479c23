"""What is wrong with the values of a config, said to whoever gave them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.rate_group import PRESETS, RateGroup
from hf_multirate.config.schedule import TURNS
from hf_multirate.config.validation import require_choice, require_int, require_number, shown, wrong_type


INTEGERS = (
    ("check_ranks_every", "cycles", 0),
    ("turns_seed", "", 0),
)
"""Settings that count something: name, what is counted, the least value."""

CHOICES = {"on_missing_gradient": ("error", "warn"), "inactive_buffers": ("update", "freeze"), "turns": TURNS}
CHOICES_OR_NONE = {"inactive_forward": ("train", "eval"), "inactive_dtype": ("bfloat16", "float16")}
"""Settings with a few values, by name."""


def check_groups(groups: Sequence[RateGroup], group_fn: object) -> None:
    """Compare the rate groups with each other.

    Raises:
        TypeError: one is no rate group, or ``group_fn`` no function.
        ValueError: two share a name, one has no pattern, or none has period 1.
    """
    for group in groups:
        if not isinstance(group, RateGroup):
            wrong_type("each of the groups", "a RateGroup", group)
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"rate groups need different names, got {shown(names)}.")
    for group in groups:
        if not group.patterns and group_fn is None:
            raise ValueError(
                f"rate group {group.name!r} has no pattern: give a regular expression or a preset ({PRESETS})."
            )
    if not any(group.gradient_period == 1 for group in groups):
        raise ValueError(
            f"no rate group has period 1, got periods {[group.period for group in groups]}: at some steps nothing "
            "would get a gradient. Give the fastest group period 1."
        )
    if group_fn is not None and not _takes_two(group_fn):
        wrong_type("group_fn", "a function of a name and a parameter", group_fn)


def _takes_two(function: object) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind("name", None)
    except TypeError:
        return False
    except ValueError:  # a function in C that does not say what it takes
        return True
    return True


def check_auto_periods(groups: Sequence[RateGroup], auto_periods: AutoPeriods | None) -> None:
    """Compare automatic periods with rate groups.

    Raises:
        TypeError: they are of another type.
        ValueError: a group has a period, an idle rule or a random subset.
    """
    if auto_periods is None:
        return
    if not isinstance(auto_periods, AutoPeriods):
        wrong_type("auto_periods", "an AutoPeriods, as MultirateConfig.auto(speedup=2.0) has one", auto_periods)
    given = [
        group.name
        for group in groups
        if group.period != 1 or group.idle != "freeze" or group.random_subset is not None
    ]
    if given:
        raise ValueError(
            f"rate groups {given} have a period, an idle rule or a random subset, which do not go with automatic "
            "periods: leave them out, or leave auto_periods out."
        )


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are single values, checked one by one, as plain values.

    Raises:
        TypeError: a number or a flag is something else.
        ValueError: a value is out of range.
    """
    found: dict[str, Any] = {}
    for name, unit, least in INTEGERS:
        found[name] = require_int(name, values[name], least=least, unit=unit)
    for name, choices in CHOICES.items():
        found[name] = require_choice(name, values[name], choices)
    for name, choices in CHOICES_OR_NONE.items():
        found[name] = require_choice(name, values[name], choices, or_none=True)
    found["drift_factor"] = "auto" if values["drift_factor"] == "auto" else _drift_factor(values["drift_factor"])
    return found


def _drift_factor(value: Any) -> float:
    wanted = "a number between 0 and 1, or 'auto'"
    scale = require_number("drift_factor", value, wanted)
    if not 0 <= scale <= 1:
        raise ValueError(f"drift_factor must be {wanted}, got {scale}.")
    return scale
