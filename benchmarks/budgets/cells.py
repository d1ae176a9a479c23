"""The runs that tables show, by budget and contender, and the baseline to beat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.accuracy.chosen_runs import best_rate, grids
from benchmarks.accuracy.results import Result, ResultsFile, read_results


Cell = dict[int, Result]
"""Runs of a contender at a budget, by seed."""

Cells = dict[str, Cell]
"""The same by contender."""

Budgets = dict[float, Cells]
"""The same by budget."""


def all_cells(folder: Path, *, allow_dirty: bool) -> dict[tuple[str, str], Budgets]:
    """Runs at the chosen rates, by task and length.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found = {(file.task, file.length): cells_of(file, allow_dirty=allow_dirty) for file in read_results(folder)}
    return {key: budgets for key, budgets in found.items() if budgets}


def cells_of(file: ResultsFile, *, allow_dirty: bool, by: str = "budget") -> dict[Any, Cells]:
    """The same for one task and length.

    Args:
        file: Its results.
        allow_dirty: As in `all_cells`.
        by: Key of a run that takes the place of the budget.
    """
    rates = {method: best_rate(grid) for method, grid in grids(file.runs).items()}
    budgets: dict[Any, Cells] = defaultdict(lambda: defaultdict(dict))
    for run in file.runs:
        if run["machine"]["dirty"] and not allow_dirty:
            raise ValueError(
                f"{file.path} has a run of {run['method']!r} on files that were not committed: run it again, or give "
                "--allow-dirty."
            )
        if run["role"] == "final" and run["rate"] == rates.get(run["method"]):
            budgets[run[by]][run["method"]][run["seed"]] = run
    return {budget: dict(budgets[budget]) for budget in sorted(budgets)}


def expert(cells: Cells) -> str | None:
    """The baseline with the best mean accuracy on validation rows at one budget; of equal ones the first.

    None if no baseline was run. Only baselines with as many seeds as the others count.
    """
    baselines = {name: cell for name, cell in cells.items() if family(cell) == "baseline"}
    most = max(map(len, baselines.values()), default=0)
    complete = {name: cell for name, cell in baselines.items() if len(cell) == most}
    return max(complete, key=lambda name: mean(complete[name], "validation_metric"), default=None)


def family(cell: Cell) -> str:
    """Family of a contender."""
    return str(next(iter(cell.values()))["settings"]["method"]["family"])


def mean(cell: Cell, metric: str = "test_metric") -> float:
    """Mean of a metric over seeds."""
    return fmean(run[metric] for run in cell.values())


def differences(cell: Cell, reference: Cell, metric: str = "test_metric") -> list[float]:
    """A metric less that of ``reference``, for the seeds that both have."""
    return [cell[seed][metric] - reference[seed][metric] for seed in sorted(cell.keys() & reference)]


def ahead(tasks: Mapping[str, Cells]) -> dict[str, dict[str, list[float]]]:
    """Contender -> task -> differences from the expert baseline of the task, which are 0 for itself."""
    found: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for task, cells in tasks.items():
        best = expert(cells)
        for name, cell in cells.items():
            if best is not None and (gaps := differences(cell, cells[best])):
                found[name][task] = gaps
    return dict(found)
