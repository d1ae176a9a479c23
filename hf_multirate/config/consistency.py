"""What is wrong with the values of a config, said to whoever gave them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.config.budget import Budget
from hf_multirate.config.rate_group import PRESETS, RateGroup
from hf_multirate.config.schedule import TURNS
from hf_multirate.config.validation import require_bool, require_choice, require_int, require_number, shown, wrong_type


INTEGERS = (
    ("initial_full_steps", "steps", 0),
    ("check_ranks", "cycles", 0),
    ("turns_seed", "", 0),
)
"""Settings that count something: name, what is counted, the least value."""

CHOICES = {"missing_gradients": ("error", "warn"), "idle_buffers": ("update", "freeze"), "turns": TURNS}
CHOICES_OR_NONE = {"idle_mode": ("train", "eval"), "idle_dtype": ("bfloat16", "float16")}
"""Settings with a few values, by name."""


def check_groups(groups: Sequence[RateGroup], group_of: object) -> None:
    """Compare the rate groups with each other.

    Raises:
        TypeError: one is no rate group, or ``group_of`` no function.
        ValueError: two share a name, one has no pattern, or none has period 1.
    """
    for group in groups:
        if not isinstance(group, RateGroup):
            wrong_type("each of the groups", "a RateGroup", group)
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"rate groups need different names, got {shown(names)}.")
    for group in groups:
        if not group.patterns and group_of is None:
            raise ValueError(
                f"rate group {group.name!r} has no pattern: give a regular expression or a preset ({PRESETS})."
            )
    if not any(group.gradient_period == 1 for group in groups):
        raise ValueError(
            f"no rate group has period 1, got periods {[group.period for group in groups]}: at some steps nothing "
            "would get a gradient. Give the fastest group period 1."
        )
    if group_of is not None and not _takes_two(group_of):
        wrong_type("group_of", "a function of a name and a parameter", group_of)


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


def check_budget(groups: Sequence[RateGroup], budget: Budget | None) -> None:
    """Compare a budget with rate groups.

    Raises:
        TypeError: it is no budget.
        ValueError: groups say for themselves what it finds.
    """
    if budget is None:
        return
    if not isinstance(budget, Budget):
        wrong_type("budget", "a Budget, as MultirateConfig.auto(speedup=2.0) has one", budget)
    given = [
        group.name for group in groups if group.period != 1 or group.idle != "drift" or group.drift_steps is not None
    ]
    if given:
        raise ValueError(
            f"rate groups {given} have a period, an idle rule or drift steps of their own, and with a budget they are "
            "found while training: leave them out, or leave the budget out."
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
    found["idle_compile"] = require_bool("idle_compile", values["idle_compile"])
    found["drift_scale"] = None if values["drift_scale"] is None else _drift_scale(values["drift_scale"])
    return found


def _drift_scale(value: Any) -> float:
    wanted = "a number between 0 and 1, or None"
    scale = require_number("drift_scale", value, wanted)
    if not 0 <= scale <= 1:
        raise ValueError(f"drift_scale must be {wanted}, got {scale}.")
    return scale
