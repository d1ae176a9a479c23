"""Differences between paired runs: bootstrap intervals of one task, and aggregates over tasks.

Seeds pair the runs: one seed has the same head and the same order of the data for all contenders. Intervals are of the
percentile bootstrap, which draws seeds with replacement, in each task. The aggregates are those of Agarwal et al.,
*Deep Reinforcement Learning at the Edge of the Statistical Precipice* (NeurIPS 2021). Their package ``rliable`` has no
paired form of the probability, and cannot be imported beside pandas 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


DRAWS = 10_000
LEVEL = 0.95
TRIMMED = 0.25
"""Share that the interquartile mean leaves out at each end."""

Numbers = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Differences over tasks.

    Attributes:
        mean: Mean over tasks of the mean difference.
        middle: Interquartile mean of all differences.
        better: Mean over tasks of the probability of a difference above 0; a tie counts half.
        worst: Task with the lowest mean difference, and this difference.
    """

    mean: Interval
    middle: Interval
    better: Interval
    worst: tuple[str, float]


def interval(differences: Sequence[float], draws: int = DRAWS) -> Interval:
    """Mean difference of one task.

    Args:
        differences: One for each seed.
        draws: Number of bootstrap draws.

    Raises:
        ValueError: there is no difference.
    """
    return over_tasks({"": differences}, draws).mean


def over_tasks(differences: Mapping[str, Sequence[float]], draws: int = DRAWS) -> Summary:
    """Aggregates over tasks.

    Args:
        differences: Task -> one difference for each seed.
        draws: Number of bootstrap draws.

    Raises:
        ValueError: there is no task, or one without a difference.
    """
    if not differences or not all(differences.values()):
        raise ValueError(f"each task needs at least one difference, got {dict(differences)}.")
    known = {task: np.array([values], dtype=np.float64) for task, values in differences.items()}
    random = np.random.default_rng(0)
    drawn = {
        task: values[0][random.integers(values.size, size=(draws, values.size))] for task, values in known.items()
    }
    parts = [_interval(statistic, known, drawn) for statistic in (_mean, _middle, _better)]
    means = {task: float(values.mean()) for task, values in known.items()}
    worst = min(means, key=lambda task: means[task])
    return Summary(*parts, (worst, means[worst]))


def _interval(statistic: Any, known: Mapping[str, Numbers], drawn: Mapping[str, Numbers]) -> Interval:
    low, high = np.quantile(statistic(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(known)[0]), float(low), float(high))


def _mean(values: Mapping[str, Numbers]) -> Numbers:
    """Of arrays (draws, seeds) by task: shape (draws,)."""
    return np.mean([of_task.mean(axis=1) for of_task in values.values()], axis=0)


def _middle(values: Mapping[str, Numbers]) -> Numbers:
    ordered = np.sort(np.concatenate(list(values.values()), axis=1), axis=1)
    cut = int(TRIMMED * ordered.shape[1])
    return ordered[:, cut : ordered.shape[1] - cut].mean(axis=1)


def _better(values: Mapping[str, Numbers]) -> Numbers:
    return _mean({task: (of_task > 0) + 0.5 * (of_task == 0) for task, of_task in values.items()})
