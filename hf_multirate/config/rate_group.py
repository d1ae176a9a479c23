"""Rate groups: parameters that share a period and an idle rule, and the presets that name them."""

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
    require_positive,
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
"""Regular expression for a number of blocks or parts in a preset."""

NEVER = "never"
"""Period of a group that gets no gradient: its parameters are frozen for the whole run."""

LONGEST_STEP = 1e6
"""Largest factor on the step of a group: longer steps exceed the range of float32."""

PresetValue = int | float | tuple[int, int] | None


def parse_preset(text: str) -> tuple[str, PresetValue] | None:
    """Kind and value of a preset, or None if ``text`` is a regular expression.

    Parameter names contain no colon, so ``word:value`` is always a preset. ``word:value@module`` applies the preset
    to the stack of a module, see `place_in`.

    >>> parse_preset("last:2"), parse_preset("head"), parse_preset("classifier")
    (('last', 2), ('head', None), None)

    Raises:
        ValueError: the text has the form of a preset, but its kind or value is unknown.
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
        raise ValueError(f"{shown(text)} stands for several rate groups: use MultirateConfig.ladder([...]).")
    raise ValueError(f"unknown preset {shown(text)}: use {PRESETS}, or a regular expression without a colon.")


def place_in(preset: str) -> str | None:
    """Name of the module that a preset applies to, or None for the largest stack of the model.

    >>> place_in("last:2@text_model"), place_in("last:2")
    ('text_model', None)
    """
    return preset.partition("@")[2] or None


def parse_ladder(text: str) -> list[int | str] | None:
    """Periods of a ladder written as ``ladder:1,2,4``, or None if ``text`` is not a ladder.

    Raises:
        ValueError: a period is neither an integer nor ``never``.
    """
    if not text.startswith("ladder:"):
        return None
    try:
        words = text.removeprefix("ladder:").split(",")
        return [NEVER if word.strip() == NEVER else int(word) for word in words]
    except ValueError:
        raise ValueError(
            f"a ladder must be a list of integers separated by commas, as in 'ladder:1,2,4', got {shown(text)}."
        ) from None


@dataclass(frozen=True)
class RateGroup:
    """Group of parameters with a common period and idle rule.

    Attributes:
        name: Name of the group in tables, logs and errors.
        patterns: Regular expressions searched in parameter names, or one preset: ``head``, ``last:N``, ``depth:F`` or
            ``part:I/N``. ``last:N@text_model`` applies the preset to the stack in the module of that name. May be
            empty if the config has a ``group_fn``.
        period: Mean number of steps from one gradient of the group to the next; 1 is every step.
            ``"never"`` freezes the group for the whole run.
        idle: Idle rule, applied at steps without a gradient. ``freeze`` leaves the group unchanged. ``drift`` moves it
            along its last update at every step, as in the paper. ``long_step`` leaves it unchanged and multiplies its
            step at the refresh by ``period``.
        drift_steps: Steps after a refresh at which a group with ``idle="drift"`` moves; None for all.
        lr_scale: Factor on the learning rate of the group, for refreshes and drift.
        random_subset: Random subset of the weights that is zero between refreshes. All other weights of the group get
            a gradient at every step. ``period`` is then the number of steps between two draws.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has the wrong type.
    """

    name: str
    patterns: str | Sequence[str]
    period: int | str = 1
    idle: str = "freeze"
    drift_steps: int | None = None
    lr_scale: float = 1.0
    random_subset: RandomSubset | None = None

    def __post_init__(self) -> None:
        """Validate the values, and convert them to plain ones and ``patterns`` to a tuple."""
        name = require_text("name of a rate group", self.name)
        if not name:
            raise ValueError("a rate group needs a name, got ''.")
        of = f"of rate group {shown(name)}"
        values = {
            "name": name,
            "patterns": _patterns(name, self.patterns),
            "period": require_period(f"period {of}", self.period),
            "idle": require_choice(f"idle {of}", self.idle, IDLE_RULES),
            "lr_scale": require_positive(f"lr_scale {of}", self.lr_scale),
            "drift_steps": _drift_steps(self),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
        _check_never(self)
        _check_subset(self)
        _check_step_length(self)

    @property
    def is_never(self) -> bool:
        """Whether the group never gets a gradient."""
        return self.period == NEVER

    @property
    def steps(self) -> int:
        """The period as a number of steps; 0 for ``"never"``."""
        return 0 if isinstance(self.period, str) else self.period

    @property
    def gradient_period(self) -> int:
        """Steps from one gradient to the next; 0 for never, and 1 with a random subset.

        All weights outside of a random subset get a gradient at every step.
        """
        return 1 if self.random_subset is not None else self.steps


def require_period(name: str, value: Any) -> int | str:
    """Check a period: a number of steps, or ``"never"``.

    Raises:
        ValueError: the value is below 1.
        TypeError: the value is neither an integer nor ``"never"``.
    """
    if isinstance(value, str) and value == NEVER:
        return NEVER
    return require_int(name, value, least=1, unit="steps, or 'never'")


def _check_never(group: RateGroup) -> None:
    if not group.is_never:
        return
    settings = {
        "idle": (group.idle, "freeze"),
        "lr_scale": (group.lr_scale, 1.0),
        "random_subset": (group.random_subset, None),
    }
    for name, (value, default) in settings.items():
        if value != default:
            raise ValueError(
                f"rate group {group.name!r} has period 'never' and {name}={shown(value)}, but its parameters do not "
                f"move: leave {name} out, or give a number of steps as its period."
            )


def _drift_steps(group: RateGroup) -> int | None:
    if group.drift_steps is None:
        return None
    name = f"drift_steps of rate group {shown(group.name)}"
    steps = require_int(name, group.drift_steps, least=1, unit="steps (or None for all; idle='freeze' for none)")
    if group.idle != "drift":
        raise ValueError(
            f"{name} is {steps}, but its idle rule is {group.idle!r}: only 'drift' uses drift_steps, so leave it out."
        )
    return steps


def _check_step_length(group: RateGroup) -> None:
    length = group.lr_scale * (group.steps if group.idle == "long_step" else 1)
    if length > LONGEST_STEP:
        raise ValueError(
            f"a step of rate group {shown(group.name)} would be {length:.3g} times as long as a step of the optimizer "
            f"(lr_scale is {group.lr_scale:g}, and idle='long_step' multiplies it by the period {group.period}). The "
            f"maximum is {LONGEST_STEP:g} times: give a smaller lr_scale or period, or another idle rule."
        )


def _check_subset(group: RateGroup) -> None:
    subset = group.random_subset
    if subset is None:
        return
    if not isinstance(subset, RandomSubset):
        wrong_type(f"random_subset of rate group {shown(group.name)}", "a RandomSubset", subset)
    if group.idle != "freeze":
        raise ValueError(
            f"rate group {group.name!r} has a random subset and idle={group.idle!r}. The weights outside the subset "
            "get a gradient at every step: leave idle out."
        )
    if subset.redraw == "step" and group.period != 1:
        raise ValueError(
            f"the random subset of rate group {group.name!r} has redraw='step', which requires period 1, got period "
            f"{group.period}: set period=1 or redraw='cycle'."
        )


def _patterns(group: str, value: Any) -> tuple[str, ...]:
    name = f"patterns of rate group {shown(group)}"
    items = (value,) if isinstance(value, str) else require_items(name, value, "a string or a list of strings")
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
                f"rate group {group!r} mixes the preset {pattern!r} with other patterns {shown(patterns)}: give only "
                "the preset, or only regular expressions."
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
    """Whether a pattern is one whole name, which need not be compiled: automatic periods have thousands of them."""
    inner = pattern[1:-1]
    return pattern == f"^{inner}$" and re.escape(re.sub(r"\\(.)", r"\1", inner)) == inner


def depth_ladder(
    periods: Sequence[int | str], idle: str = "freeze", drift_steps: int | None = None
) -> list[RateGroup]:
    """Rate groups of equal depth, one for each of ``periods``, from the top of the model down."""
    parts = len(periods)
    return [
        RateGroup(f"part {i}", f"part:{i}/{parts}", period, idle, drift_steps) for i, period in enumerate(periods, 1)
    ]
