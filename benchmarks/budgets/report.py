"""The page docs/results/equal_time.md, from the results of `python -m benchmarks accuracy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from pathlib import Path
from statistics import fmean

from benchmarks.accuracy import outcome_tables
from benchmarks.accuracy.chosen_runs import Grids, all_grids
from benchmarks.accuracy.results import Result
from benchmarks.budgets.cells import Budgets, Cell, Cells, ahead, all_cells, expert, family, mean
from benchmarks.budgets.kinds import KINDS, KindsFile
from benchmarks.budgets.statistics import Interval, interval, over_tasks
from benchmarks.budgets.tasks import HELD_OUT, LANGUAGE_MODELS
from benchmarks.machine import in_words
from benchmarks.plots import Curves, accuracy_at_budgets
from benchmarks.tables import mean_percent, percent, signed, table, with_interval


LABELS = {**outcome_tables.LABELS, "brown": "Brown, word classes", "pairs": "Brown, pairs", "smollm2": "SmolLM2"}
PAGE = "equal_time.md"
LENGTHS = {"short": "one epoch", "long": "three epochs"}
OFF = 0.03
"""Deviation of a charge from its budget that is marked."""

KEPT_APART = ", tasks that were kept apart"
WITHOUT_NEW_HEAD = ", a language model"

HEADER = "<!-- Written by `python -m benchmarks report` from benchmarks/results/budgets. -->"
TITLE = "# Accuracy at equal time"
READING = """\
- A budget is a share of the reference seconds of standard training. Each contender is planned for its budget and takes
  its learning-rate schedule to the end.
- Reference seconds are the sum over kinds of steps of their number times the seconds of one, on one thread.
- **Expert baseline** is the baseline with the best accuracy on validation rows, for each task, length and budget:
  standard training, with or without a head rate, decay with depth, a head start and dropout.
- Differences are in points of accuracy on test rows, of runs paired by seed, with 95 % t-intervals over seeds.
  Differences whose interval does not contain 0 are bold. *Mean*, *worst task*, *middle* (interquartile mean) and
  *better* (share of runs that are better than the expert baseline, a mean over tasks) are over the tasks of the table.
  They are empty for a contender that lacks a task.
- Rows are in the order of the mean difference, so what is behind the baseline stands below what is ahead.
- A star at an accuracy marks a mean charge that is off its budget by more than 3 %. A star at a learning rate marks
  the highest or lowest rate that was tried: such a contender may do better beyond it.
- *Used / charged* has the seconds that runs took, as a share of their charge, divided by that of the expert baseline
  on the same machine, for each budget. Above 1 a contender was charged too little. A dash means other machines."""


def page(folder: Path, *, allow_dirty: bool = False) -> str | None:
    """Text of the page; None if there is no result.

    Args:
        folder: ``benchmarks/results/budgets``.
        allow_dirty: Whether results of files that were not committed are shown too.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found = all_cells(folder, allow_dirty=allow_dirty)
    if not found:
        return None
    parts = [HEADER, TITLE, READING, *_comparisons(found)]
    for task in dict.fromkeys(task for task, _ in found):
        parts += [f"## {LABELS.get(task, task)}", *_of_task(task, found, all_grids(folder))]
        parts += _seconds(KindsFile(folder / KINDS, task))
    return "\n\n".join(parts) + "\n"


def _comparisons(found: Mapping[tuple[str, str], Budgets]) -> Iterator[str]:
    """Differences from the expert baseline, for each length and budget; some tasks in tables of their own."""
    for length, words in LENGTHS.items():
        for kind in ("", KEPT_APART, WITHOUT_NEW_HEAD):
            tasks = {t: b for (t, n), b in found.items() if n == length and kind_of(t) == kind}
            for budget in sorted({budget for budgets in tasks.values() for budget in budgets}):
                cells = {task: budgets[budget] for task, budgets in tasks.items() if budget in budgets}
                yield f"## Budget {budget:g} of {words}{kind}"
                yield comparison(cells)


def kind_of(task: str) -> str:
    """What a heading says of a table that has ``task``."""
    return KEPT_APART if task in HELD_OUT else WITHOUT_NEW_HEAD if task in LANGUAGE_MODELS else ""


def comparison(tasks: Mapping[str, Cells]) -> str:
    """Contenders against the expert baseline at one budget, by task and over all tasks."""
    experts = {task: name for task, cells in tasks.items() if (name := expert(cells)) is not None}
    best = [f"{percent(mean(tasks[t][experts[t]]))}: {experts[t]}" if t in experts else "" for t in tasks]
    rows = [["expert baseline", *best, "", "", "", ""]]
    gaps = ahead(tasks)
    order = sorted(gaps, key=lambda name: -fmean(fmean(values) for values in gaps[name].values()))
    for name in order:
        if any(experts.get(task) != name for task in gaps[name]):
            cells = ["expert baseline" if experts.get(t) == name else gap(gaps[name].get(t)) for t in tasks]
            rows.append([name, *cells, *_over_tasks(gaps[name], len(tasks))])
    return table(["contender", *(LABELS.get(t, t) for t in tasks), "mean", "worst task", "middle", "better"], rows)


def gap(values: list[float] | None) -> str:
    """Mean of differences and its interval, in percentage points; empty without differences."""
    return points(interval(values)) if values else ""


def _over_tasks(gaps: Mapping[str, list[float]], number: int) -> list[str]:
    if len(gaps) < number or number < 2:
        return [""] * 4
    found = over_tasks(gaps)
    worst, least = found.worst
    least_of_all = f"{signed(least)} {LABELS.get(worst, worst)}"
    return [points(found.mean), least_of_all, signed(found.middle), f"{found.better:.2f}"]


def points(value: Interval) -> str:
    """A difference of shares and its interval, in percentage points."""
    return with_interval(value.value, value.low, value.high)


def _of_task(
    task: str, found: Mapping[tuple[str, str], Budgets], trials: Mapping[tuple[str, str], Grids]
) -> Iterator[str]:
    for length, words in LENGTHS.items():
        if (task, length) in found:
            yield f"### Accuracy in percent, shares of {words}"
            yield accuracies(found[task, length], trials[task, length])
            if task in LANGUAGE_MODELS:
                yield f"### Perplexity, shares of {words}"
                yield perplexities(found[task, length])
            if len(found[task, length]) > 1:
                yield f"![accuracy against reference seconds, {words}](images/{figure_name(task, length)})"


def figure_name(task: str, length: str) -> str:
    """File name of the figure of a task and length."""
    return f"equal_time_{task}_{length}.png"


def draw(folder: Path, images: Path, *, allow_dirty: bool = False) -> None:
    """Write the figures of all tasks and lengths with more than one budget.

    Args:
        folder: ``benchmarks/results/budgets``.
        images: Folder of the figures.
        allow_dirty: Whether results of files that were not committed are shown too.
    """
    every = all_cells(folder, allow_dirty=allow_dirty)
    for (task, length), budgets in ((key, budgets) for key, budgets in every.items() if len(budgets) > 1):
        baselines: dict[str, Curves] = {}
        others: dict[str, Curves] = {}
        for name in dict.fromkeys(name for cells in budgets.values() for name in cells):
            of_budgets = [cells[name] for cells in budgets.values() if name in cells]
            kind = family(of_budgets[0])
            (baselines if kind == "baseline" else others)[name] = curves(of_budgets, ours=kind == "multirate")
        title = f"{LABELS.get(task, task)}: shares of {LENGTHS[length]}"
        accuracy_at_budgets(baselines, others, title, images / figure_name(task, length))


def curves(of_budgets: Sequence[Cell], *, ours: bool) -> Curves:
    """Accuracy in percent of one contender against reference seconds."""
    times = [fmean(run["reference_seconds"] for run in cell.values()) for cell in of_budgets]
    return Curves(times, [[100 * run["test_metric"] for run in cell.values()] for cell in of_budgets], ours)


def accuracies(budgets: Budgets, trials: Grids) -> str:
    """Mean and standard deviation over seeds, by contender and budget; and rate and steps.

    Args:
        budgets: Runs of the task.
        trials: Rates that were tried, by contender.
    """
    names = dict.fromkeys(name for cells in budgets.values() for name in cells)
    rows = []
    for name in names:
        cells = [cells.get(name) for cells in budgets.values()]
        rate = next(run["rate"] for cell in cells if cell for run in cell.values())
        steps = [f"{fmean(run['steps'] for run in cell.values()):.0f}" if cell else "" for cell in cells]
        edge = r" \*" if rate in (min(trials[name]), max(trials[name])) else ""
        used = ", ".join(_used(of_budget, name) for of_budget in budgets.values())
        seeds = ", ".join(dict.fromkeys(str(len(cell)) for cell in cells if cell))
        rows.append([name, *(_accuracy(cell) for cell in cells), seeds, f"{rate:g}{edge}", ", ".join(steps), used])
    header = ["contender", *(f"{budget:g}" for budget in budgets), "seeds", "rate", "steps", "used / charged"]
    return table(header, rows)


def _used(cells: Cells, name: str) -> str:
    """Process seconds by reference seconds, divided by that of the expert baseline on the same machine."""
    best = expert(cells)
    if best is None or name not in cells:
        return ""
    pairs = [(cells[name][seed], cells[best][seed]) for seed in cells[name].keys() & cells[best].keys()]
    ratios = [_seconds_by_charge(ours) / _seconds_by_charge(theirs) for ours, theirs in pairs if _same(ours, theirs)]
    return f"{fmean(ratios):.2f}" if ratios else "-"


def _seconds_by_charge(run: Result) -> float:
    return float(run["process_seconds"] / run["reference_seconds"])


def _same(one: Result, other: Result) -> bool:
    return bool(one["machine"] == other["machine"])


def perplexities(budgets: Budgets) -> str:
    """Exponential of the mean loss over rows and seeds, by contender and budget, of a language model."""
    rows = []
    for name in dict.fromkeys(name for cells in budgets.values() for name in cells):
        losses = [[run["test_loss"] for run in cells.get(name, {}).values()] for cells in budgets.values()]
        rows.append([name, *(f"{exp(fmean(of_cell)):.2f}" if of_cell else "" for of_cell in losses)])
    return table(["contender", *(f"{budget:g}" for budget in budgets)], rows)


def _accuracy(cell: Cell | None) -> str:
    if not cell:
        return ""
    shares = [run["reference_seconds"] / run["budget_seconds"] for run in cell.values()]
    mark = " *" if abs(fmean(shares) - 1) > OFF else ""
    return mean_percent([run["test_metric"] for run in cell.values()]) + mark.replace("*", r"\*")


def _seconds(file: KindsFile) -> Iterator[str]:
    """The kinds of steps of a task, and the machine."""
    if not file.lines:
        return
    rows = []
    for setting in file.settings():
        for kind in file.kinds(setting):
            charge = file.charge(setting, kind)
            low, high = charge.quartiles
            seconds = [f"{charge.seconds:.4f} ({low:.4f} to {high:.4f})", f"{charge.wall_seconds:.4f}"]
            rows.append([setting, kind, *seconds, str(len(file.passes(setting)))])
    yield "### Reference seconds"
    yield table(["setting", "kind", "process seconds (quartiles)", "wall seconds", "passes"], rows)
    machines = dict.fromkeys(map(in_words, file.machines.values()))
    yield "Machine: " + "; ".join(machines) + "."
