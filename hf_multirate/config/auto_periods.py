"""Periods that are chosen for a model: the speed-up asked for, and the longest period."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.config.validation import require_int, require_number


DEFAULT_SPEEDUP = 1.6
"""Speed-up if none is given: the highest that cost less than a point of accuracy on every task that was measured."""


@dataclass(frozen=True)
class AutoPeriods:
    """Periods are chosen when the model is known, so that a step takes ``1 / speedup`` of the work of a full step.

    Attributes:
        speedup: Work of a full step over the mean work of a step; None is `DEFAULT_SPEEDUP`.
        max_period: The longest period, a power of two: every block gets a gradient at least that often.

    Raises:
        ValueError: a value is out of range.
        TypeError: the speed-up is no number, or the period no integer.
    """

    speedup: float | None = None
    max_period: int = 16

    def __post_init__(self) -> None:
        """Validate, and make values plain ones."""
        speedup = None if self.speedup is None else require_speedup("speedup", self.speedup)
        longest = require_int("max_period", self.max_period, least=2, unit="steps")
        if longest & (longest - 1):
            raise ValueError(f"max_period must be a power of two, got {longest}.")
        object.__setattr__(self, "speedup", speedup)
        object.__setattr__(self, "max_period", longest)

    @property
    def work(self) -> float:
        """Mean work of a step that is asked for, as a share of a full step."""
        return 1.0 / (self.speedup or DEFAULT_SPEEDUP)


def require_speedup(name: str, value: object) -> float:
    """A speed-up as a plain number.

    Raises:
        ValueError: it is below 1 or not finite.
        TypeError: it is no number.
    """
    speedup = require_number(name, value)
    if speedup < 1:
        raise ValueError(
            f"{name} must be at least 1, got {speedup}: it is the work of a full step over the mean work of a step, "
            "2.0 for half of it."
        )
    return speedup
