"""Short tables of the benchmark at equal time, for pages that are written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.budgets.cells import Cells, ahead, all_cells, expert, mean
from benchmarks.budgets.report import LABELS, kind_of, points
from benchmarks.budgets.statistics import interval
from benchmarks.tables import percent, table


HEADLINE = {
    "frozen below last:2 + head rate + head start": "top two blocks only",
    "ladder 1,2,4 + head rate + head start": "ladder 1, 2, 4",
}
"""Contenders of the table in the README, and their names there."""

BY_BUDGET = {
    "frozen below last:2 + head rate + head start": "top two blocks only",
    "top, then ladder + head rate + head start": "top, then ladder",
    "ladder 1,2,4 + head rate + head start": "ladder 1, 2, 4",
}
"""Those of the table with all budgets."""


def headline(folder: Path, length: str, budget: float, *, allow_dirty: bool = False) -> str:
    """The expert baseline and the contenders of `HEADLINE` on all tasks at one budget.

    Args:
        folder: ``benchmarks/results/budgets``.
        length: ``short`` or ``long``.
        budget: The budget.
        allow_dirty: Whether results of files that were not committed are shown too.
    """
    tasks = _cells_at(folder, length, allow_dirty=allow_dirty).get(budget, {})
    rows = [[LABELS.get(task, task), *row] for task, row in _against_expert(tasks, HEADLINE)]
    return table(["task", "expert baseline, %", "its extras", *HEADLINE.values()], rows)


def by_budget(folder: Path, length: str, *, allow_dirty: bool = False) -> str:
    """The expert baseline and the contenders of `BY_BUDGET` at all budgets; arguments as in `headline`."""
    every = _cells_at(folder, length, allow_dirty=allow_dirty)
    rows = [
        [f"{budget:g}", LABELS.get(task, task), *row]
        for budget in sorted(every)
        for task, row in _against_expert(every[budget], BY_BUDGET)
    ]
    return table(["budget", "task", "expert baseline, %", "its extras", *BY_BUDGET.values()], rows)


def _cells_at(folder: Path, length: str, *, allow_dirty: bool) -> dict[float, dict[str, Cells]]:
    """Runs by budget and task, of the tasks that have no table of their own."""
    found: dict[float, dict[str, Cells]] = {}
    for (task, of_runs), budgets in all_cells(folder, allow_dirty=allow_dirty).items():
        if of_runs == length and not kind_of(task):
            for budget, cells in budgets.items():
                found.setdefault(budget, {})[task] = cells
    return found


def _against_expert(tasks: Mapping[str, Cells], names: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Task, and accuracy and extras of the expert baseline with differences of ``names`` from it."""
    gaps = ahead(tasks)
    for task, cells in tasks.items():
        best = expert(cells)
        if best is not None:
            known = (gaps.get(name, {}).get(task) for name in names)
            differences = [points(interval(values)) if values else "" for values in known]
            extras = best.removeprefix("baseline").removeprefix(" + ") or "no extra"
            yield task, [percent(mean(cells[best])), extras, *differences]
