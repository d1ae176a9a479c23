"""Seconds per step, estimated from the first steps of a run, and the number of steps that fit into a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


Kind = tuple[int, ...]
"""Kind of a step: indices of its live rate groups."""

ENOUGH = 4
"""Number of measured steps of a kind, the first one included, after which its mean is used."""


class StepEstimate:
    """Mean seconds of a step, from measured steps of each kind.

    The first step of a kind is left out of its mean if there are others, because it allocates memory and compiles.

    Args:
        kinds: Kind of step -> number of such steps in a cycle.
        before: A `state` of an earlier part of the run.
    """

    def __init__(self, kinds: Mapping[Kind, int], before: Mapping[str, list[float]] | None = None) -> None:
        self._kinds = dict(kinds)
        self._seconds: dict[Kind, list[float]] = {
            tuple(int(group) for group in key.split(",") if group): list(seconds)
            for key, seconds in (before or {}).items()
        }

    def add(self, kind: Kind, seconds: float) -> None:
        """Add a measured step."""
        self._seconds.setdefault(kind, []).append(seconds)

    @property
    def number(self) -> int:
        """Number of measured steps."""
        return sum(len(seconds) for seconds in self._seconds.values())

    @property
    def complete(self) -> bool:
        """Whether each kind of step was measured often enough."""
        return all(len(self._seconds.get(kind, [])) >= ENOUGH for kind in self._kinds)

    def mean(self) -> float:
        """Mean seconds of a step over a cycle. A kind without a step takes the time of the most similar kind."""
        weights = sum(self._kinds.values())
        return sum(number * self.mean_of(kind) for kind, number in self._kinds.items()) / weights

    def mean_of(self, kind: Kind) -> float:
        """Mean seconds of a step of one kind. There has to be a measured step."""
        similar = min(self._seconds, key=lambda other: (abs(len(other) - len(kind)), -len(other)))
        seconds = self._seconds.get(kind) or self._seconds[similar]
        later = seconds[1:] or seconds
        return sum(later) / len(later)

    def full(self) -> float:
        """Mean seconds of a full step."""
        return self.mean_of(max(self._kinds, key=len))

    def state(self) -> dict[str, Any]:
        """The measured seconds, for a checkpoint."""
        return {",".join(map(str, kind)): seconds for kind, seconds in self._seconds.items()}


def fitting_steps(step: int, seconds: float, cost: Callable[[int], float], shortest: float) -> int:
    """The number of steps of a run whose cost is closest to the time that is left.

    Args:
        step: Number of steps so far.
        seconds: Seconds left.
        cost: Number of steps of the run -> seconds from now until its end; rises with the number.
        shortest: Lower limit of the seconds of a step, above 0.

    Returns:
        The number of steps, at least ``step + 1``.

    >>> fitting_steps(10, 100.0, lambda steps: 2.0 * (steps - 10), shortest=2.0)
    60
    """
    low, high = step + 1, step + 2 + int(max(seconds, 0.0) / shortest)
    while low < high:
        middle = (low + high + 1) // 2
        if cost(middle) <= seconds:
            low = middle
        else:
            high = middle - 1
    return low + 1 if cost(low) <= seconds and cost(low + 1) - seconds < seconds - cost(low) else low
