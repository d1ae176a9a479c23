"""Short tables of the benchmark at equal time, for pages that are written by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.accuracy.machine_correction import Runs
from benchmarks.accuracy.outcome_tables import at_equal_steps
from benchmarks.budgets.cells import Cells, ahead, all_cells, expert, mean
from benchmarks.budgets.report import LABELS, kind_of, points
from benchmarks.budgets.statistics import interval
from benchmarks.tables import percent, table
from hf_multirate.trainer.frozen_length import longest_advised


BY_BUDGET = {
    "frozen below last:2 + head rate + head start": "top two blocks only",
    "ladder 1,2,4 + head rate + head start": "ladder 1, 2, 4",
}
"""Contenders of the table with all budgets, and their names there."""

DEFAULT = "multirate ladder 1,2,4 freeze"
"""The default configuration in the suite at equal steps."""

LABELS_OF = {"cifar10": 10, "embedded": 2, "fashion": 10, "imdb": 2, "sst2": 2, "trec": 50, "brown": 75, "pairs": 2}
"""Task -> number of labels."""

PER_TOKEN = {"brown"}
"""Tasks with a label for each token."""

NEW_HEAD, STANDARD = "frozen below last:2 + head rate + head start", "baseline + head rate"
"""The two contenders between which the rule chooses."""


def headline(folder: Path, length: str, runs: Mapping[tuple[str, str], Runs], *, allow_dirty: bool = False) -> str:
    """The top blocks only at equal time, at all budgets, and the default configuration at equal steps.

    Args:
        folder: ``benchmarks/results/budgets``.
        length: ``short`` or ``long``.
        runs: Runs of the suite at equal steps, by task and length.
        allow_dirty: Whether results of files that were not committed are shown too.
    """
    every = _cells_at(folder, length, allow_dirty=allow_dirty)
    budgets = sorted(every)
    rows = []
    for task in sorted({task for tasks in every.values() for task in tasks}):
        found = [ahead({task: every[b][task]}) if task in every[b] else {} for b in budgets]
        gaps = [cells.get(NEW_HEAD, {}).get(task) for cells in found]
        steps = at_equal_steps(runs.get((task, length), {}), DEFAULT)
        rows.append([LABELS.get(task, task), *(points(interval(g)) if g else "" for g in gaps), steps])
    return table(["task", *(f"new head, {budget:g}" for budget in budgets), "default, same steps"], rows)


def by_budget(folder: Path, length: str, kind: str = "", *, allow_dirty: bool = False) -> str:
    """The expert baseline, the contender of the rule, and those of `BY_BUDGET`, at all budgets.

    Args:
        folder: As in `headline`.
        length: As in `headline`.
        kind: Kind of the tasks, as of `kind_of`.
        allow_dirty: As in `headline`.
    """
    every = _cells_at(folder, length, kind, allow_dirty=allow_dirty)
    rows = [
        [f"{budget:g}", LABELS.get(task, task), *row[:2], _by_rule(task, budget, every[budget]), *row[2:]]
        for budget in sorted(every)
        for task, row in _against_expert(every[budget], BY_BUDGET)
    ]
    return table(["budget", "task", "expert baseline, %", "its extras", "the rule", *BY_BUDGET.values()], rows)


def chosen_by_rule(task: str, budget: float) -> str:
    """The contender that the rule of the package takes: `hf_multirate.trainer.frozen_length`."""
    longest = longest_advised(LABELS_OF.get(task, 0), per_token=task in PER_TOKEN)
    return NEW_HEAD if budget <= longest else STANDARD


def _by_rule(task: str, budget: float, tasks: Mapping[str, Cells]) -> str:
    name = chosen_by_rule(task, budget)
    values = ahead({task: tasks[task]}).get(name, {}).get(task)
    words = "top two blocks" if name == NEW_HEAD else "standard"
    return f"{words}, {points(interval(values))}" if values else ""


def _cells_at(folder: Path, length: str, kind: str = "", *, allow_dirty: bool) -> dict[float, dict[str, Cells]]:
    """Runs by budget and task, of the tasks of one kind."""
    found: dict[float, dict[str, Cells]] = {}
    for (task, of_runs), budgets in all_cells(folder, allow_dirty=allow_dirty).items():
        if of_runs == length and kind_of(task) == kind:
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
