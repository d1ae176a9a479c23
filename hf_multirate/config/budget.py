"""What a user asks of automatic training: a budget, and how often the plan may change."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.config.validation import require_bool, require_int, require_number


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
        """Validate, and make values plain ones."""
        values = {
            "speedup": None if self.speedup is None else require_speedup("speedup", self.speedup),
            "longest": require_int("longest", self.longest, least=2, unit="steps"),
            "cycles": require_int("cycles", self.cycles, least=1, unit="times longest steps"),
            "drift": require_bool("drift of a budget", self.drift),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)
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


def require_speedup(name: str, value: object) -> float:
    """A number of times that steps may be cheaper than full ones.

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
