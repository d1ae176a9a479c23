"""Settings of automatic periods: the requested speed-up and the longest period."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.config.validation import require_int, require_number


DEFAULT_SPEEDUP = 1.6
"""Default speed-up: the highest with an accuracy loss below one percentage point on every measured task."""


@dataclass(frozen=True)
class AutoPeriods:
    """Settings of automatic periods.

    Periods are chosen once the model is known, so that the mean work of a step is ``1 / speedup`` of a full step.

    Attributes:
        speedup: Work of a full step divided by the mean work of a step; None for `DEFAULT_SPEEDUP`.
        max_period: Longest period, a power of two; every block gets a gradient at least that often.

    Raises:
        ValueError: a value is out of range.
        TypeError: ``speedup`` is not a number, or ``max_period`` is not an integer.
    """

    speedup: float | None = None
    max_period: int = 16

    def __post_init__(self) -> None:
        """Validate the values, and convert them to plain ones."""
        speedup = None if self.speedup is None else require_speedup("speedup", self.speedup)
        max_period = require_int("max_period", self.max_period, least=2, unit="steps")
        if max_period & (max_period - 1):
            raise ValueError(f"max_period must be a power of two, got {max_period}.")
        object.__setattr__(self, "speedup", speedup)
        object.__setattr__(self, "max_period", max_period)

    @property
    def work(self) -> float:
        """Requested mean work of a step, as a share of a full step."""
        return 1.0 / (self.speedup or DEFAULT_SPEEDUP)


def require_speedup(name: str, value: object) -> float:
    """Check a speed-up, and return it as a float.

    Raises:
        ValueError: the value is below 1 or not finite.
        TypeError: the value is not a number.
    """
    speedup = require_number(name, value)
    if speedup < 1:
        raise ValueError(
            f"{name} must be at least 1, got {speedup}. It is the work of a full step divided by the mean work of a "
            "step: give 2.0 to halve the work."
        )
    return speedup
