"""What the user asks for: rate groups and how often each of them gets a gradient.

Everything here is a plain, frozen value that knows neither torch nor a model. Whether a pattern
matches anything is found out in ``partition.py``, where there are parameters to match.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_multirate.schedule import Schedule


IDLE_RULES = ("drift", "hold")
MISSING_GRADIENT_RULES = ("error", "warn")
_Value = TypeVar("_Value")
PRESETS = "'head', 'last:N' (N >= 1 blocks), 'depth:F' (0 < F <= 1)"


def parse_preset(text: str) -> tuple[str, int | float | None] | None:
    """Kind and value of a preset, or None if ``text`` is a regular expression.

    A colon never occurs in a parameter name, so ``word:value`` is always meant as a preset.

    >>> parse_preset("last:2"), parse_preset("head"), parse_preset("classifier")
    (('last', 2), ('head', None), None)

    Raises:
        ValueError: the text has the form of a preset, but there is none of that name or value.
    """
    if text == "head":
        return "head", None
    match = re.fullmatch(r"(\w+):(.*)", text)
    if match is None:
        return None
    kind, value = match.groups()
    if kind == "last" and re.fullmatch(r"[1-9]\d*", value):
        return "last", int(value)
    if kind == "depth" and re.fullmatch(r"\d*\.?\d+", value) and 0 < float(value) <= 1:
        return "depth", float(value)
    raise ValueError(f"unknown preset {text!r}: use {PRESETS}, or a regular expression without a colon.")


@dataclass(frozen=True)
class RateGroup:
    """Parameters that share a period.

    Attributes:
        name: How the group is called in tables, logs and errors.
        patterns: Regular expressions searched in parameter names, or one preset: ``head``, ``last:N``, ``depth:F``.
        period: Optimizer steps between two gradients of the group; 1 is every step.
        idle: What the group does at a step without a gradient. ``drift`` moves it along its last update at every
            step; ``hold`` makes the whole move of the cycle, ``period`` times the learning rate, at the refresh and
            leaves the group where it is until the next one.
        lr_scale: Factor on the learning rate of the group, at its refreshes and in its drift.

    Raises:
        ValueError: a value is out of range; the message names it.
        TypeError: the period is not an integer or a pattern is not a string.
    """

    name: str
    patterns: str | Sequence[str]
    period: int
    idle: str = "drift"
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        """Validate, and make ``patterns`` a tuple."""
        patterns = (self.patterns,) if isinstance(self.patterns, str) else tuple(self.patterns)
        object.__setattr__(self, "patterns", patterns)
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"a rate group needs a name, got {self.name!r}.")
        _check_patterns(self.name, patterns)
        if isinstance(self.period, bool) or not isinstance(self.period, int):
            raise TypeError(f"period of rate group {self.name!r} must be an integer, got {self.period!r}.")
        if self.period < 1:
            raise ValueError(f"period of rate group {self.name!r} must be at least 1, got {self.period}.")
        if self.idle not in IDLE_RULES:
            raise ValueError(f"idle of rate group {self.name!r} must be one of {IDLE_RULES}, got {self.idle!r}.")
        if not (math.isfinite(self.lr_scale) and self.lr_scale > 0):
            raise ValueError(f"lr_scale of rate group {self.name!r} must be positive and finite, got {self.lr_scale}.")


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    if not patterns:
        raise ValueError(f"rate group {name!r} has no pattern: give a regular expression or a preset ({PRESETS}).")
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
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern {pattern!r} of rate group {name!r} is not a regular expression: {error}. "
                f"Escape special characters, or use a preset ({PRESETS})."
            ) from error


@dataclass(frozen=True)
class MultirateConfig:
    """The rate groups of a run. A parameter belongs to the first group that matches it.

    Attributes:
        groups: The rate groups; at least one has period 1.
        initial_full_steps: Steps at the start of training at which every group gets a gradient.
        drift_scale: Factor on the drift of idle groups, on top of their learning rate; 1 is Algorithm 1. None, the
            default, is 1 for SGD; for other optimizers each parameter finds its own: see `hf_multirate.trust`.
        missing_gradients: What to do when a parameter that has had a gradient before gets none at its turn:
            ``error``, or ``warn`` for models that skip layers at random (layer drop, sparse experts).

    Raises:
        ValueError: a value is out of range, two groups share a name, or no group has period 1.
    """

    groups: Sequence[RateGroup]
    initial_full_steps: int = 0
    drift_scale: float | None = None
    missing_gradients: str = "error"

    def __post_init__(self) -> None:
        """Validate, and make ``groups`` a tuple."""
        groups = tuple(self.groups)
        object.__setattr__(self, "groups", groups)
        for group in groups:
            if not isinstance(group, RateGroup):
                raise TypeError(f"groups must be RateGroup objects, got {group!r}.")
        names = [group.name for group in groups]
        if len(set(names)) < len(names):
            raise ValueError(f"rate groups need different names, got {names}.")
        if not any(group.period == 1 for group in groups):
            raise ValueError(
                f"no rate group has period 1, got periods {[group.period for group in groups]}: at some steps nothing "
                "would get a gradient. Give the fastest group period 1."
            )
        if isinstance(self.initial_full_steps, bool) or not isinstance(self.initial_full_steps, int):
            raise TypeError(f"initial_full_steps must be an integer number of steps, got {self.initial_full_steps!r}.")
        if self.initial_full_steps < 0:
            raise ValueError(f"initial_full_steps must not be negative, got {self.initial_full_steps}.")
        if self.drift_scale is not None and not 0 <= self.drift_scale <= 1:
            raise ValueError(f"drift_scale must be between 0 and 1, or None, got {self.drift_scale!r}.")
        if self.missing_gradients not in MISSING_GRADIENT_RULES:
            raise ValueError(
                f"missing_gradients must be one of {MISSING_GRADIENT_RULES}, got {self.missing_gradients!r}."
            )

    @classmethod
    def two_rate(
        cls, fast: str | Sequence[str] = "last:1", period: int = 5, idle: str = "drift", **settings: Any
    ) -> MultirateConfig:
        """The common case: a group ``fast`` with a gradient at every step, and ``slow`` for all the rest.

        ``settings`` are further fields of `MultirateConfig`.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", period, idle))
        return cls(groups, **settings)

    @classmethod
    def off(cls) -> MultirateConfig:
        """One group that gets a gradient at every step: plain training."""
        return cls((RateGroup("all", ".*", 1),))

    @property
    def schedule(self) -> Schedule:
        """Which groups are live at which step."""
        return Schedule(tuple(group.period for group in self.groups), self.initial_full_steps)

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values that `from_dict` turns back into an equal config."""
        values = dataclasses.asdict(self)
        values["groups"] = [{**group, "patterns": list(group["patterns"])} for group in values["groups"]]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultirateConfig:
        """The inverse of `to_dict`; unknown or missing keys raise `ValueError`."""
        groups = values.get("groups") if isinstance(values, Mapping) else None
        if not isinstance(groups, Sequence) or isinstance(groups, str):
            raise ValueError(f"a multirate config needs a list 'groups' of rate groups, got {values!r}.")
        return _build(cls, {**values, "groups": tuple(_build(RateGroup, group) for group in groups)})

    def to_json(self) -> str:
        """The config as a JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json_file(cls, path: str | Path) -> MultirateConfig:
        """Read a config from a file that holds the text of `to_json`.

        Raises:
            ValueError: there is no such file, it holds no JSON, or no valid config.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"multirate config {str(path)!r} cannot be read as JSON: {error}") from error
        return cls.from_dict(values)


def _build(kind: type[_Value], values: Any) -> _Value:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ValueError(f"{kind.__name__} needs a mapping of its fields {sorted(fields)}, got {values!r}.")
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    unknown, missing = sorted(set(values) - set(fields)), sorted(required - set(values))
    if unknown or missing:
        raise ValueError(
            f"{kind.__name__}: unknown keys {unknown}, missing keys {missing}; fields are {sorted(fields)}."
        )
    return kind(**values)
