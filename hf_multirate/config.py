"""What the user asks for: rate groups and how often each of them gets a gradient.

Everything here is a plain, frozen value that knows neither torch nor a model. Whether a pattern
matches anything is found out in ``partition.py``, where there are parameters to match.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hf_multirate.groups import RateGroup
from hf_multirate.schedule import Schedule


MISSING_GRADIENT_RULES = ("error", "warn")
IDLE_MODES = ("train", "eval")
_Value = TypeVar("_Value")


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
        idle_mode: Mode in which modules without a live parameter run forward at fast-only steps: ``train``, as in
            Trainer, or ``eval``, without dropout (batch norm stays as in Trainer). None, the default, is ``train``
            for SGD, which then is Algorithm 1 to the letter, and ``eval`` for other optimizers.

    Raises:
        ValueError: a value is out of range, two groups share a name, or no group has period 1.
    """

    groups: Sequence[RateGroup]
    initial_full_steps: int = 0
    drift_scale: float | None = None
    missing_gradients: str = "error"
    idle_mode: str | None = None

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
        if self.idle_mode is not None and self.idle_mode not in IDLE_MODES:
            raise ValueError(f"idle_mode must be one of {IDLE_MODES}, or None, got {self.idle_mode!r}.")

    @classmethod
    def two_rate(
        cls, fast: str | Sequence[str] = "depth:0.33", period: int = 5, idle: str = "drift", **settings: Any
    ) -> MultirateConfig:
        """The common case: a group ``fast`` with a gradient at every step, and ``slow`` for all the rest.

        ``settings`` are further fields of `MultirateConfig`.
        """
        groups = (RateGroup("fast", fast, 1), RateGroup("slow", ".*", period, idle))
        return cls(groups, **settings)

    @classmethod
    def ladder(cls, periods: Sequence[int], idle: str = "drift", **settings: Any) -> MultirateConfig:
        """The stack of blocks in equal parts from the top, one for each of ``periods``.

        The first part has the head and whatever follows the blocks, the last one the embeddings. With periods
        1, 2, 4, 8 backward goes to the bottom at every eighth step, and as deep as in the ruler sequence in between.

        Args:
            periods: Steps between two gradients of each part, from the top; the first is 1.
            idle: What the parts do in between.
            **settings: Further fields of `MultirateConfig`.
        """
        parts = [
            RateGroup(f"part {i}", f"part:{i}/{len(periods)}", period, idle) for i, period in enumerate(periods, 1)
        ]
        return cls(parts, **settings)

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
