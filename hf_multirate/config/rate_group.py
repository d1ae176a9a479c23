"""One rate group: which parameters, how often they get a gradient, and what they do in between."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.validation import (
    require_choice,
    require_int,
    require_items,
    require_number,
    require_text,
    shown,
    wrong_type,
)


IDLE_RULES = ("freeze", "drift", "long_step")
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
        idle: What the group does at a step without a gradient. ``freeze`` leaves it unchanged. ``drift`` moves it
            along its last update at every step, as in the paper. ``long_step`` leaves it unchanged, and multiplies
            its step at the refresh by ``period``.
        drift_steps: Steps after a refresh at which a group with ``drift`` moves; None is all of them.
        lr_scale: Factor on the learning rate of the group, at its refreshes and in its drift.
        random_subset: A random subset of the weights that is zero between refreshes, while all other weights of the
            group get a gradient at every step. ``period`` is then the number of steps between two draws.

    Raises:
        ValueError: a value is out of range; the message names it.
        TypeError: the period is not an integer or a pattern is not a string.
    """

    name: str
    patterns: str | Sequence[str]
    period: int = 1
    idle: str = "freeze"
    drift_steps: int | None = None
    lr_scale: float = 1.0
    random_subset: RandomSubset | None = None

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
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        _check_subset(self)
        _check_step(self)

    @property
    def gradient_period(self) -> int:
        """Steps between two gradients; with a random subset the other weights get one at every step."""
        return 1 if self.random_subset is not None else self.period


def _drift_steps(group: RateGroup) -> int | None:
    if group.drift_steps is None:
        return None
    name = f"drift_steps of rate group {shown(group.name)}"
    steps = require_int(name, group.drift_steps, least=1, unit="steps (or None for all; idle='freeze' for none)")
    if group.idle != "drift":
        raise ValueError(f"{name} is {steps}, but its idle rule is {group.idle!r}: only 'drift' has drift steps.")
    return steps


def _check_step(group: RateGroup) -> None:
    length = group.lr_scale * (group.period if group.idle == "long_step" else 1)
    if length > LONGEST_STEP:
        raise ValueError(
            f"a step of rate group {shown(group.name)} would be {length:.3g} times as long as one of the optimizer "
            f"(lr_scale is {group.lr_scale:g}, and idle='long_step' multiplies it by the period {group.period}), and "
            f"at most {LONGEST_STEP:g} times is possible: give a smaller lr_scale or period, or another idle rule."
        )


def _check_subset(group: RateGroup) -> None:
    subset = group.random_subset
    if subset is None:
        return
    if not isinstance(subset, RandomSubset):
        wrong_type(f"random_subset of rate group {shown(group.name)}", "a RandomSubset", subset)
    if group.idle != "freeze":
        raise ValueError(
            f"rate group {group.name!r} has a random subset and idle={group.idle!r}: all other weights get a gradient "
            "at every step, so leave idle out."
        )
    if subset.redraw == "step" and group.period != 1:
        raise ValueError(
            f"the random subset of rate group {group.name!r} is drawn at every step, which has no cycle, but its "
            f"period is {group.period}: give it period 1, or redraw='cycle'."
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


def depth_ladder(periods: Sequence[int], idle: str = "freeze", drift_steps: int | None = None) -> list[RateGroup]:
    """Rate groups of equal depth from the top of the model down, one for each of ``periods``."""
    parts = len(periods)
    return [
        RateGroup(f"part {i}", f"part:{i}/{parts}", period, idle, drift_steps) for i, period in enumerate(periods, 1)
    ]
