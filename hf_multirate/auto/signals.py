"""What a gradient of each block is worth, by the age of the update it is held against, with its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


TINY = 1e-9

DECAY = 0.9
"""Weight of what is known when a sample comes in."""


@dataclass
class Estimate:
    """Exponentially weighted mean of samples, and its standard error."""

    mean: float = 0.0
    weight: float = 0.0
    squares: float = 0.0
    deviation: float = 0.0

    def add(self, value: float) -> None:
        """One more sample."""
        self.weight = DECAY * self.weight + 1.0
        self.squares = DECAY**2 * self.squares + 1.0
        difference = value - self.mean
        self.mean += difference / self.weight
        self.deviation = DECAY * self.deviation + difference * (value - self.mean)

    @property
    def error(self) -> float | None:
        """Standard error of the mean, from the scatter of the samples; None of fewer than two."""
        degrees = self.weight - self.squares / self.weight if self.weight else 0.0
        if degrees <= TINY:
            return None
        return float((self.deviation / degrees * self.squares) ** 0.5 / self.weight)

    @property
    def positive(self) -> bool:
        """Whether the mean is above its noise."""
        return self.error is not None and self.mean > self.error


class Signals:
    """Estimates for each block and age: the decrease of the loss at a learning rate of 1, to first order.

    Args:
        number: How many blocks there are.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._known: dict[tuple[int, int], Estimate] = {}

    def add(self, block: int, age: int, value: float) -> None:
        """A sample: minus a fresh gradient times the update ``age`` steps before."""
        self._known.setdefault((block, age), Estimate()).add(value)

    def worth(self, block: int) -> Estimate:
        """That of the step before."""
        return self._known.get((block, 1), Estimate())

    def usable(self) -> list[float] | None:
        """Worth of each block, at least its noise; None if it is above its noise nowhere, or not known yet.

        A block of which little more than noise is seen is not taken for worthless: its next gradients will tell. One
        that has had no gradients is.
        """
        found = [self.worth(block) for block in range(self._number)]
        if not any(estimate.positive for estimate in found):
            return None
        least = 1e-6 * max(estimate.mean for estimate in found)
        return [max(estimate.mean, estimate.error or 0.0, least) for estimate in found]

    def drift_steps(self, block: int, period: int, least: float) -> int:
        """Idle steps at which drift pays, of the ``period - 1`` that there are.

        Args:
            block: Which one.
            period: Steps between two of its gradients.
            least: Worth at which it pays, as a share of that of a gradient; it is more than its noise in any case.
        """
        steps, least = 0, least * self.worth(block).mean
        for age in sorted(age for known, age in self._known if known == block and age <= period):
            estimate = self._known[block, age]
            if not estimate.positive or estimate.mean < least:
                break
            steps = age
        return min(steps, period - 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {f"{block} {age}": asdict(estimate) for (block, age), estimate in self._known.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Take over a `state_dict`."""
        self._known = {}
        for key, values in state.items():
            block, age = map(int, key.split())
            self._known[block, age] = Estimate(**values)
