"""What a user asks of automatic training: a budget, and how often the plan may change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from hf_multirate.counts import require_count


DEFAULT_SPEEDUP = 1.6
"""Where none is named: the highest that was within a point of plain training of its time on all of docs/auto.md."""


@dataclass(frozen=True)
class Budget:
    """Periods are found while training, so that steps take ``1 / speedup`` of the work of full steps on average.

    Attributes:
        speedup: Work of a full step over the mean work of a step; None is `DEFAULT_SPEEDUP`.
        longest: The longest period, a power of two: every block gets a gradient at least that often.
        cycles: Times ``longest`` steps that a plan lasts before it is made anew.
        drift: Whether blocks drift where that is found to lower the loss; else idle blocks stand still.

    Raises:
        ValueError: a value is out of range.
        TypeError: the speed-up is no number, a number of steps no integer, or ``drift`` no bool.
    """

    speedup: float | None = None
    longest: int = 16
    cycles: int = 3
    drift: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        if self.speedup is not None:
            _check_speedup(self.speedup)
            object.__setattr__(self, "speedup", float(self.speedup))  # a number of numpy is no plain value
        for name, least in (("longest", 2), ("cycles", 1)):
            require_count(name, "steps", vars(self)[name], least)
        if not isinstance(self.drift, bool):
            raise TypeError(f"drift of a budget must be True or False, got {self.drift!r}.")
        if self.longest & (self.longest - 1):
            raise ValueError(f"longest must be a power of two, got {self.longest}.")

    @property
    def share(self) -> float:
        """Mean work of a step, as a share of a full one."""
        return 1.0 / (self.speedup or DEFAULT_SPEEDUP)

    @property
    def plan_steps(self) -> int:
        """Steps that a plan lasts: one more full step than its cycles, to tell what one step is worth."""
        return 1 + self.cycles * self.longest

    @property
    def least_steps(self) -> int:
        """Steps of training below which measuring does not pay: one to count work, and two plans."""
        return 1 + 2 * self.plan_steps


def _check_speedup(speedup: Any) -> None:
    if isinstance(speedup, bool) or not isinstance(speedup, Real):
        raise TypeError(f"speedup must be a number, or None for {DEFAULT_SPEEDUP}, got {speedup!r}.")
    if not (math.isfinite(float(speedup)) and float(speedup) >= 1):
        raise ValueError(
            f"speedup must be at least 1, got {speedup!r}: it is how many times less work than plain "
            "training steps may be, 2.0 for half of it."
        )
