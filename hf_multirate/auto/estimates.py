"""What a gradient of each block is worth, by the age of the update it is held against, with its noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


DECAY = 0.9
"""Weight of what is known when a sample comes in."""

ROUNDS = 20
"""In which the scale of what is expected is found."""

LEAST = 0.1
"""Worth of a block at least, as a share of what is expected of it."""


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
        """Standard error of the mean, from the scatter of the samples; None of fewer than three.

        Two may be close to each other by chance.
        """
        degrees = self.weight - self.squares / self.weight if self.weight else 0.0
        if degrees < 1.0:
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

    def given(self, expected: Sequence[float]) -> list[float] | None:
        """Worth of each block, nearer to what was measured the smaller the error of that is, else to ``expected``.

        What is expected takes its scale from all blocks together, and counts as a measurement with an error as large
        as itself. No block is taken for worthless: its next gradients will tell.

        Args:
            expected: Worth of each block before anything is measured, in any unit; positive.

        Returns:
            None if all blocks together are not above their noise, or nothing is known yet.
        """
        found = [self.worth(block) for block in range(self._number)]
        known = [(value, e.mean, e.error) for value, e in zip(expected, found, strict=True) if e.error is not None]
        scale = _scale(known)
        if scale is None:
            return None
        return [_between(scale * value, estimate) for value, estimate in zip(expected, found, strict=True)]

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


def _scale(known: Sequence[tuple[float, float, float]]) -> float | None:
    """Factor on what is expected that fits what was measured; None if that is within its noise.

    A block weighs the less the larger its error and what is expected of it, by which that may be off: else one that is
    known well, because it is worth nothing, would decide for all.

    Args:
        known: What is expected, mean and error of each block of which something is known.
    """
    total = sum(expected for expected, _, _ in known)
    scale = sum(mean for _, mean, _ in known) / total if known else 0.0
    fit = noise = 0.0
    for _ in range(ROUNDS):
        if scale <= 0:
            return None
        weights = [expected / (error**2 + (scale * expected) ** 2) for expected, _, error in known]
        fit = sum(weight * expected for weight, (expected, _, _) in zip(weights, known, strict=True))
        noise = sum((weight * error) ** 2 for weight, (_, _, error) in zip(weights, known, strict=True))
        scale = sum(weight * mean for weight, (_, mean, _) in zip(weights, known, strict=True)) / fit
    return scale if scale > 0 and (scale * fit) ** 2 > noise else None


def _between(expected: float, measured: Estimate) -> float:
    """The mean of both, each with the weight of its squared error; that of what is expected is its size."""
    if measured.error is None:
        return expected
    own, other = expected**2, measured.error**2
    return max((measured.mean * own + expected * other) / (own + other), LEAST * expected)
