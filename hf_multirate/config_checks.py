"""What is wrong with the values of a config, said to whoever gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.auto.settings import Budget
from hf_multirate.counts import require_count
from hf_multirate.groups import PRESETS, RateGroup


INTEGERS = (
    ("initial_full_steps", "steps", 0),
    ("check_ranks", "cycles", 0),
)
"""Settings that count something: name, what is counted, the least value."""

CHOICES = {"missing_gradients": ("error", "warn"), "idle_buffers": ("update", "freeze")}
CHOICES_OR_NONE = {"idle_mode": ("train", "eval"), "idle_dtype": ("bfloat16", "float16")}
"""Settings with a few values, by name."""


def check_groups(groups: Sequence[RateGroup], group_of: object) -> None:
    """Hold the rate groups against each other.

    Raises:
        TypeError: one is no rate group, or ``group_of`` no function.
        ValueError: two share a name, one has no pattern, or none has period 1.
    """
    for group in groups:
        if not isinstance(group, RateGroup):
            raise TypeError(f"groups must be RateGroup objects, got {group!r}.")
    names = [group.name for group in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"rate groups need different names, got {names}.")
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
    if group_of is not None and not callable(group_of):
        raise TypeError(f"group_of must be a function of a name and a parameter, got {group_of!r}.")


def check_budget(groups: Sequence[RateGroup], budget: Budget | None) -> None:
    """Hold a budget against rate groups.

    Raises:
        TypeError: it is no budget.
        ValueError: groups say for themselves what it finds.
    """
    if budget is None:
        return
    if not isinstance(budget, Budget):
        raise TypeError(f"budget takes a Budget, as MultirateConfig.auto(speedup=2.0) has one, got {budget!r}.")
    given = [
        group.name for group in groups if group.period != 1 or group.idle != "drift" or group.drift_steps is not None
    ]
    if given:
        raise ValueError(
            f"rate groups {given} have a period, an idle rule or drift steps of their own, and with a budget they are "
            "found while training: leave them out, or leave the budget out."
        )


def check_settings(values: Mapping[str, Any]) -> None:
    """Look at the fields of a config one by one.

    Raises:
        TypeError: a number or a flag is something else.
        ValueError: a value is out of range.
    """
    for name, unit, least in INTEGERS:
        require_count(name, unit, values[name], least)
    scale = values["drift_scale"]
    if scale is not None and not 0 <= scale <= 1:
        raise ValueError(f"drift_scale must be between 0 and 1, or None, got {scale!r}.")
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {values[name]!r}.")
    for name, choices in CHOICES_OR_NONE.items():
        if values[name] is not None and values[name] not in choices:
            raise ValueError(f"{name} must be one of {choices}, or None, got {values[name]!r}.")
    if not isinstance(values["idle_compile"], bool):
        raise TypeError(f"idle_compile must be True or False, got {values['idle_compile']!r}.")
