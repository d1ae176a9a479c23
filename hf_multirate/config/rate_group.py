"""One rate group: which parameters, how often they get a gradient, and what they do in between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_multirate.config.subset import RandomSubset
from hf_multirate.config.validation import (
    require_choice,
    require_int,
    require_items,
    require_number,
    require_text,
    shown,
    wrong_type,
)


IDLE_RULES = ("drift", "hold", "zero")
PRESETS = (
    "'head', 'last:N' (N >= 1 blocks), 'depth:F' (0 < F <= 1), 'part:I/N' (1 <= I <= N), or one of the last three "
    "within a module, as in 'last:N@text_model'"
)
COUNT = "[1-9][0-9]{0,8}"
"""A number of blocks or parts in a preset."""

LONGEST_STEP = 1e6
"""Steps of the optimizer that one step of a group may be as long as: longer ones leave the range of float32."""

PresetValue = int | float | tuple[int, int] | None


def parse_preset(text: str) -> tuple[str, PresetValue] | None:
    """Kind and value of a preset, or None if ``text`` is a regular expression.

    A colon never occurs in a parameter name, so ``word:value`` is always meant as a preset. ``word:value@module`` is
    the preset within the stack of that module: see `place_in`.

    >>> parse_preset("last:2"), parse_preset("head"), parse_preset("classifier")
    (('last', 2), ('head', None), None)

    Raises:
        ValueError: the text has the form of a preset, but there is none of that name or value.
    """
    if text == "head":
        return "head", None
    match = re.fullmatch(r"(\w+):(.*?)(@.+)?", text, re.DOTALL)
    if match is None:
        return None
    kind, value = match[1], match[2]
    if kind == "last" and re.fullmatch(COUNT, value):
        return "last", int(value)
    if kind == "depth" and re.fullmatch(r"[0-9]*\.?[0-9]+", value) and 0 < float(value) <= 1:
        return "depth", float(value)
    part = re.fullmatch(f"({COUNT})/({COUNT})", value) if kind == "part" else None
    if part is not None and int(part[1]) <= int(part[2]):
        return "part", (int(part[1]), int(part[2]))
    if kind == "ladder":
        raise ValueError(f"{shown(text)} is several rate groups at once: use MultirateConfig.ladder([...]).")
    raise ValueError(f"unknown preset {shown(text)}: use {PRESETS}, or a regular expression without a colon.")


def place_in(preset: str) -> str | None:
    """Name of the module whose stack a preset is about, or None for the largest stack of the model.

    >>> place_in("last:2@text_model"), place_in("last:2")
    ('text_model', None)
    """
    return preset.partition("@")[2] or None


def parse_ladder(text: str) -> list[int] | None:
    """Periods of a ladder written as ``ladder:1,2,4``, or None if ``text`` is something else.

    Raises:
        ValueError: they are no integers.
    """
    if not text.startswith("ladder:"):
        return None
    try:
        return [int(word) for word in text.removeprefix("ladder:").split(",")]
    except ValueError:
        raise ValueError(
            f"a ladder is integers separated by commas, as in 'ladder:1,2,4', got {shown(text)}."
        ) from None


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a period.

    Attributes:
        name: How the group is called in tables, logs and errors.
        patterns: Regular expressions searched in parameter names, or one preset: ``head``, ``last:N``, ``depth:F``,
            ``part:I/N``; ``last:N@text_model`` is about the stack in a module of that name. None of them if the
            configuration has a function that names the group.
        period: Optimizer steps between two gradients of the group; 1 is every step.
        idle: What the group does at a step without a gradient. ``drift`` moves it along its last update at every
            step; ``hold`` makes the whole move of the cycle, ``period`` times the learning rate, at the refresh and
            leaves the group where it is until the next one; ``zero`` is said of a random subset of the group, which
            is held at zero between refreshes, while all the rest of it gets a gradient at every step.
        lr_scale: Factor on the learning rate of the group, at its refreshes and in its drift.
        drift_steps: Idle steps after a refresh for which the group drifts before it stands still; None for all.
        subset: The random subset, for ``zero`` only; None is ``RandomSubset()``.

    Raises:
        ValueError: a value is out of range; the message names it.
        TypeError: the period is not an integer or a pattern is not a string.
    """

    name: str
    patterns: str | Sequence[str]
    period: int
    idle: str = "drift"
    lr_scale: float = 1.0
    drift_steps: int | None = None
    subset: RandomSubset | None = None

    def __post_init__(self) -> None:
        """Validate, and make values plain ones and ``patterns`` a tuple."""
        name = require_text("name of a rate group", self.name)
        if not name:
            raise ValueError("a rate group needs a name, got ''.")
        of = f"of rate group {shown(name)}"
        scale = require_number(f"lr_scale {of}", self.lr_scale, "a positive number")
        if scale <= 0:
            raise ValueError(f"lr_scale {of} must be a positive number, got {shown(scale)}.")
        values = {
            "name": name,
            "patterns": _patterns(name, self.patterns),
            "period": require_int(f"period {of}", self.period, least=1, unit="steps"),
            "idle": require_choice(f"idle {of}", self.idle, IDLE_RULES),
            "lr_scale": scale,
            "drift_steps": _drift_steps(self),
            "subset": RandomSubset() if self.idle == "zero" and self.subset is None else self.subset,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        _check_subset(self)
        _check_step(self)

    @property
    def gradient_period(self) -> int:
        """Steps between two gradients for autograd; with ``zero`` all but the subset has one at every step."""
        return 1 if self.idle == "zero" else self.period


def _drift_steps(group: RateGroup) -> int | None:
    if group.drift_steps is None:
        return None
    name = f"drift_steps of rate group {shown(group.name)}"
    steps = require_int(name, group.drift_steps, least=0, unit="steps (or None, for all)")
    if group.idle != "drift":
        raise ValueError(f"{name} is {steps}, but its idle rule is {group.idle!r}: only 'drift' has drift steps.")
    return steps


def _check_step(group: RateGroup) -> None:
    length = group.lr_scale * (group.period if group.idle == "hold" else 1)
    if length > LONGEST_STEP:
        raise ValueError(
            f"a step of rate group {shown(group.name)} would be {length:.3g} times as long as one of the optimizer "
            f"(lr_scale is {group.lr_scale:g}, and idle='hold' makes the move of a whole period of {group.period} "
            f"steps at once), at most {LONGEST_STEP:g} times is possible: give a smaller lr_scale, a shorter period, "
            "or idle='drift'."
        )


def _check_subset(group: RateGroup) -> None:
    subset = group.subset
    if subset is None:
        return
    if not isinstance(subset, RandomSubset):
        wrong_type(f"subset of rate group {shown(group.name)}", "a Subset", subset)
    if group.idle != "zero":
        raise ValueError(
            f"rate group {group.name!r} has a subset, but its idle rule is {group.idle!r}: only 'zero' has one."
        )
    if subset.redraw == "step" and group.period != 1:
        raise ValueError(
            f"the subset of rate group {group.name!r} is drawn at every step, which has no cycle, but its period is "
            f"{group.period}: give it period 1, or redraw='cycle'."
        )


def _patterns(group: str, given: Any) -> tuple[str, ...]:
    name = f"patterns of rate group {shown(group)}"
    items = (given,) if isinstance(given, str) else require_items(name, given, "a string or a list of strings")
    patterns = tuple(require_text(f"each of the {name}", item) for item in items)
    for pattern in patterns:
        try:
            preset = parse_preset(pattern)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if preset is None:
            _check_expression(group, pattern)
        elif len(patterns) > 1:
            raise ValueError(
                f"rate group {group!r} mixes the preset {pattern!r} with other patterns {shown(patterns)}: give the "
                "preset alone, or regular expressions only."
            )
    return patterns


def _check_expression(group: str, pattern: str) -> None:
    if not pattern:
        raise ValueError(f"rate group {group!r} has an empty pattern '': use '.*' for all parameters.")
    if _is_literal(pattern):
        return
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"pattern {shown(pattern)} of rate group {group!r} is not a regular expression: {error}. "
            f"Escape special characters, or use a preset ({PRESETS})."
        ) from error


def _is_literal(pattern: str) -> bool:
    """Whether a pattern is one whole name: there are thousands of them where every block is a group."""
    inner = pattern[1:-1]
    return pattern == f"^{inner}$" and re.escape(re.sub(r"\\(.)", r"\1", inner)) == inner
