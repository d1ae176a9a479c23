"""Short tables of the benchmark at equal time, for pages that are written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp
from pathlib import Path

from benchmarks.accuracy.machine_correction import Runs
from benchmarks.accuracy.outcome_tables import at_equal_steps
from benchmarks.budgets.cells import Cells, ahead, all_cells, differences, expert, mean
from benchmarks.budgets.report import LABELS, gap, kind_of
from benchmarks.budgets.statistics import interval
from benchmarks.tables import percent, table
from hf_multirate.trainer.frozen_length import longest_advised, needs_head_start


Gaps = Mapping[str, Mapping[str, list[float]]]
"""Contender -> task -> differences from the expert baseline, as `ahead` returns them."""

NEW_HEAD = "frozen below last:2 + head rate + head start"
STANDARD = {False: "baseline + head rate", True: "baseline + head rate + head start"}
"""The contenders between which the rule chooses; for standard training, whether it has a head start."""

STANDARD_LOSS = "baseline"
"""Standard training of a language model, which has no new head."""

BY_BUDGET = {NEW_HEAD: "top two blocks only", "ladder 1,2,4 + head rate + head start": "ladder 1, 2, 4"}
"""Contenders of the table with all budgets, and their names there."""

DEFAULT = "multirate ladder 1,2,4 freeze"
"""The default configuration in the suite at equal steps."""

LABELS_OF = {"cifar10": 10, "embedded": 2, "fashion": 10, "imdb": 2, "sst2": 2, "trec": 50, "brown": 75, "pairs": 2}
"""Task -> number of labels."""

PER_TOKEN = {"brown"}
"""Tasks with a label for each token."""


def headline(folder: Path, length: str, runs: Mapping[tuple[str, str], Runs], *, allow_dirty: bool = False) -> str:
    """The top blocks only at equal time, at all budgets, and the default configuration at equal steps.

    Args:
        folder: ``benchmarks/results/budgets``.
        length: ``short`` or ``long``.
        runs: Runs of the suite at equal steps, by task and length.
        allow_dirty: Whether results of files that were not committed are shown too.
    """
    every = {budget: ahead(tasks) for budget, tasks in _cells_at(folder, length, allow_dirty=allow_dirty).items()}
    budgets = sorted(every)
    rows = []
    for task in sorted({task for gaps in every.values() for of_tasks in gaps.values() for task in of_tasks}):
        steps = at_equal_steps(runs.get((task, length), {}), DEFAULT)
        rows.append([LABELS.get(task, task), *(_gap(every[budget], NEW_HEAD, task) for budget in budgets), steps])
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
    rows = []
    for budget, tasks in sorted(every.items()):
        gaps = ahead(tasks)
        for task, cells in tasks.items():
            best = expert(cells)
            if best is not None:
                extras = best.removeprefix("baseline").lstrip(" ,+") or "no extra"
                known = [f"{budget:g}", LABELS.get(task, task), percent(mean(cells[best])), extras]
                chosen = chosen_by_rule(task, budget)
                rules = [
                    "the expert baseline" if name == best else _by_rule(chosen, _gap(gaps, name, task))
                    for name in (chosen, without_dropout(chosen))
                ]
                rows.append([*known, *rules, *(_gap(gaps, name, task) for name in BY_BUDGET)])
    header = ["budget", "task", "expert baseline, %", "its extras", "the rule", "the rule, no dropout"]
    return table([*header, *BY_BUDGET.values()], rows)


def losses(folder: Path, length: str, task: str, *, allow_dirty: bool = False) -> str:
    """Perplexity of a language model and the difference of its loss from standard training, the lowest loss first.

    Args:
        folder: As in `headline`.
        length: As in `headline`.
        task: The language model.
        allow_dirty: As in `headline`.
    """
    rows = []
    for budget, cells in all_cells(folder, allow_dirty=allow_dirty).get((task, length), {}).items():
        baseline = cells[STANDARD_LOSS]
        for name, cell in sorted(cells.items(), key=lambda item: mean(item[1], "test_loss")):
            found = interval(differences(cell, baseline, "test_loss"))
            gap = "" if name == STANDARD_LOSS else f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            rows.append([f"{budget:g}", name, f"{exp(mean(cell, 'test_loss')):.1f}", gap, str(len(cell))])
    return table(["budget", "contender", "perplexity", "loss minus that of the baseline", "seeds"], rows)


def chosen_by_rule(task: str, budget: float) -> str:
    """The contender that the rule of the package takes: `hf_multirate.trainer.frozen_length`."""
    labels, per_token = LABELS_OF.get(task, 0), task in PER_TOKEN
    if budget <= longest_advised(labels, per_token):
        return NEW_HEAD
    return STANDARD[needs_head_start(labels, per_token)]


def without_dropout(name: str) -> str:
    """The contender that differs from another one by dropout only."""
    setting, plus, extras = name.partition(" + ")
    return f"{setting}, no dropout{plus}{extras}"


def _by_rule(chosen: str, difference: str) -> str:
    standard = chosen.replace(" + head rate", "").replace("baseline", "standard")
    words = "top two blocks" if chosen == NEW_HEAD else standard
    return f"{words}, {difference}" if difference else ""


def _gap(gaps: Gaps, name: str, task: str) -> str:
    return gap(gaps.get(name, {}).get(task))


def _cells_at(folder: Path, length: str, kind: str = "", *, allow_dirty: bool) -> dict[float, dict[str, Cells]]:
    """Runs by budget and task, of the tasks of one kind."""
    found: dict[float, dict[str, Cells]] = {}
    for (task, of_runs), budgets in all_cells(folder, allow_dirty=allow_dirty).items():
        if of_runs == length and kind_of(task) == kind:
            for budget, cells in budgets.items():
                found.setdefault(budget, {})[task] = cells
    return found
