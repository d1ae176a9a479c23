"""Differences between paired runs: intervals of one task, and aggregates over tasks.

Seeds pair the runs: one seed has the same head and the same order of the data for all contenders. Intervals are
95 % t-intervals over seeds. A bootstrap over three seeds would give the range of the three values, which contains
the mean in three of four cases only. The aggregates over tasks are from Agarwal et al., *Deep Reinforcement Learning
at the Edge of the Statistical Precipice* (NeurIPS 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import fmean, variance

from scipy import stats


LEVEL = 0.95
TRIMMED = 0.25
"""Share that the interquartile mean leaves out at each end."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval, which is infinite for a single seed."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Differences over tasks.

    Attributes:
        mean: Mean over tasks of the mean difference.
        middle: Interquartile mean of all differences.
        better: Mean over tasks of the share of seeds with a difference above 0; a tie counts half.
        worst: Task with the lowest mean difference, and this difference.
    """

    mean: Interval
    middle: float
    better: float
    worst: tuple[str, float]


def interval(differences: Sequence[float]) -> Interval:
    """Mean difference of one task, with a t-interval.

    Args:
        differences: One for each seed.

    Raises:
        ValueError: there is no difference.
    """
    return over_tasks({"": differences}).mean


def over_tasks(differences: Mapping[str, Sequence[float]]) -> Summary:
    """Aggregates over tasks.

    Args:
        differences: Task -> one difference for each seed.

    Raises:
        ValueError: there is no task, or one without a difference.
    """
    if not differences or not all(differences.values()):
        raise ValueError(f"each task needs at least one difference, got {dict(differences)}.")
    means = {task: fmean(values) for task, values in differences.items()}
    worst = min(means, key=lambda task: means[task])
    better = fmean(fmean((value > 0) + 0.5 * (value == 0) for value in values) for values in differences.values())
    return Summary(_mean(list(differences.values())), _middle(differences.values()), better, (worst, means[worst]))


def _mean(tasks: Sequence[Sequence[float]]) -> Interval:
    """Mean of means of independent samples. The degrees of freedom are those of Welch and Satterthwaite."""
    mean = fmean(map(fmean, tasks))
    if any(len(values) < 2 for values in tasks):
        return Interval(mean, -inf, inf)
    parts = [variance(values) / len(values) / len(tasks) ** 2 for values in tasks]
    if not any(parts):
        return Interval(mean, mean, mean)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, tasks, strict=True))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * sqrt(sum(parts))
    return Interval(mean, mean - half, mean + half)


def _middle(tasks: Iterable[Sequence[float]]) -> float:
    ordered = sorted(value for values in tasks for value in values)
    cut = int(TRIMMED * len(ordered))
    return fmean(ordered[cut : len(ordered) - cut])
