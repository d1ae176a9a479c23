"""One rate group: which parameters, how often they get a gradient, and what they do in between."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hf_multirate.counts import require_count
from hf_multirate.subset import Subset


IDLE_RULES = ("drift", "hold", "zero")
PRESETS = (
    "'head', 'last:N' (N >= 1 blocks), 'depth:F' (0 < F <= 1), 'part:I/N' (1 <= I <= N), or one of the last three "
    "within a module, as in 'last:N@text_model'"
)


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
    match = re.fullmatch(r"(\w+):(.*?)(@.+)?", text)
    if match is None:
        return None
    kind, value = match[1], match[2]
    if kind == "last" and re.fullmatch(r"[1-9]\d*", value):
        return "last", int(value)
    if kind == "depth" and re.fullmatch(r"\d*\.?\d+", value) and 0 < float(value) <= 1:
        return "depth", float(value)
    part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value) if kind == "part" else None
    if part is not None and int(part[1]) <= int(part[2]):
        return "part", (int(part[1]), int(part[2]))
    if kind == "ladder":
        raise ValueError(f"{text!r} is several rate groups at once: use MultirateConfig.ladder([...]).")
    raise ValueError(f"unknown preset {text!r}: use {PRESETS}, or a regular expression without a colon.")


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
        raise ValueError(f"a ladder is integers separated by commas, as in 'ladder:1,2,4', got {text!r}.") from None


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
        subset: The random subset, for ``zero`` only; None is ``Subset()``.

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
    subset: Subset | None = None

    def __post_init__(self) -> None:
        """Validate, and make ``patterns`` a tuple."""
        patterns = (self.patterns,) if isinstance(self.patterns, str) else tuple(self.patterns)
        object.__setattr__(self, "patterns", patterns)
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a rate group needs a name, got {self.name!r}.")
        _check_patterns(self.name, patterns)
        require_count(f"period of rate group {self.name!r}", "steps", self.period, 1)
        if self.idle not in IDLE_RULES:
            raise ValueError(f"idle of rate group {self.name!r} must be one of {IDLE_RULES}, got {self.idle!r}.")
        if not (math.isfinite(self.lr_scale) and self.lr_scale > 0):
            raise ValueError(f"lr_scale of rate group {self.name!r} must be positive and finite, got {self.lr_scale}.")
        if self.drift_steps is not None:
            _check_drift_steps(self, self.drift_steps)
        if self.idle == "zero" and self.subset is None:
            object.__setattr__(self, "subset", Subset())
        if self.subset is not None:
            _check_subset(self, self.subset)

    @property
    def gradient_period(self) -> int:
        """Steps between two gradients for autograd; with ``zero`` all but the subset has one at every step."""
        return 1 if self.idle == "zero" else self.period


def _check_drift_steps(group: RateGroup, steps: int) -> None:
    require_count(f"drift_steps of rate group {group.name!r}", "steps (or None, for all)", steps, 0)
    if group.idle != "drift":
        raise ValueError(
            f"drift_steps of rate group {group.name!r} is {steps}, but its idle rule is {group.idle!r}: only 'drift' "
            "has drift steps."
        )


def _check_subset(group: RateGroup, subset: Subset) -> None:
    if not isinstance(subset, Subset):
        raise TypeError(f"subset of rate group {group.name!r} must be a Subset, got {subset!r}.")
    if group.idle != "zero":
        raise ValueError(
            f"rate group {group.name!r} has a subset, but its idle rule is {group.idle!r}: only 'zero' has one."
        )
    if subset.redraw == "step" and group.period != 1:
        raise ValueError(
            f"the subset of rate group {group.name!r} is drawn at every step, which has no cycle, but its period is "
            f"{group.period}: give it period 1, or redraw='cycle'."
        )


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"patterns of rate group {name!r} must be strings, got {pattern!r}.")
        if parse_preset(pattern) is not None:
            if len(patterns) > 1:
                raise ValueError(
                    f"rate group {name!r} mixes the preset {pattern!r} with other patterns {patterns}: give the "
                    "preset alone, or regular expressions only."
                )
            continue
        if _is_literal(pattern):
            continue
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} of rate group {name!r} is not a regular expression: {error}. "
                f"Escape special characters, or use a preset ({PRESETS})."
            ) from error


def _is_literal(pattern: str) -> bool:
    """Whether a pattern is one whole name: there are thousands of them where every block is a group."""
    inner = pattern[1:-1]
    return pattern == f"^{inner}$" and re.escape(re.sub(r"\\(.)", r"\1", inner)) == inner
