"""The choice of a learning rate: the same grid and the same number of trials for every contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.accuracy.chosen_runs import best_rate
from benchmarks.accuracy.results import Result
from benchmarks.accuracy.tasks import Task
from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.tasks import base_rate


TRIAL_SEED = 100
TRIAL_BUDGET = 0.4
FACTORS = (0.5, 1.0, 2.0)
"""Learning rates of trials, as multiples of the task's base rate times the contender's ``rate_scale``."""


def grid(task: Task, contender: Contender) -> list[float]:
    """The rates that every contender tries, in ascending order."""
    return [factor * base_rate(task) * contender.setting.rate_scale for factor in FACTORS]


def one_more(rates: Sequence[float], scores: Mapping[float, float]) -> float | None:
    """A rate beyond the edge of the grid ``rates`` if the best of ``scores`` is there; else None.

    Args:
        rates: The grid, in ascending order.
        scores: Rate -> accuracy on validation rows, with at least those of the grid.
    """
    best = best_rate({rate: scores[rate] for rate in rates})
    if best == rates[0]:
        return rates[0] * FACTORS[0]
    return rates[-1] * FACTORS[-1] if best == rates[-1] else None


def scores_of(results: Sequence[Result], method: str) -> dict[float, float]:
    """Rate -> accuracy on validation rows of the trials of a contender."""
    return {r["rate"]: r["validation_metric"] for r in results if r["role"] == "trial" and r["method"] == method}
