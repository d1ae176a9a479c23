"""Tables and figures of accuracy: for one task and length, and over all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.accuracy.baseline_interpolation import (
    ahead,
    at,
    baseline_by_time,
    in_time,
    metric,
    seconds,
    time_to,
    with_error,
)
from benchmarks.accuracy.chosen_runs import Grids
from benchmarks.accuracy.machine_correction import Runs
from benchmarks.accuracy.methods import is_baseline, is_multirate
from benchmarks.plots import Curves, accuracy_by_time
from benchmarks.tables import mean_percent, percent, points, table


NOT_RUN = "Not run yet."
BUDGETS = (0.2, 0.4, 0.6, 0.8, 1.0)
MARGIN = 1.03
"""Factor on the time of automatic periods, for a fixed setting to count as no slower."""

CLOSE = 0.99
"""Share of the accuracy of the baseline that counts as reaching it."""

COMPARED = (
    *("multirate ladder 1,2,4 freeze", "multirate ladder 1,2,4,8 freeze", "multirate last:1 k5 freeze"),
    *("multirate last:2 k5 drift 1", "multirate last:2 k5 drift", "multirate head k5 drift"),
    *("auto 1.3 measured", "auto 1.6 measured", "auto 2 measured", "auto 3 measured"),
    *("frozen below last:2", "LISA"),
)
"""Methods of the table over all tasks."""

LABELS = {
    "cifar10": "CIFAR-10, SGD",
    "embedded": "sentences",
    "embedded_bf16": "sentences, bf16",
    "fashion": "Fashion-MNIST, SGD",
    "imdb": "IMDB",
    "sst2": "SST-2",
    "trec": "TREC, 50 labels",
}
LENGTHS = {"short": "one epoch", "long": "three epochs"}


def all_tasks(found: Mapping[tuple[str, str], Runs], length: str) -> str:
    """A row per method and a column per task: points ahead of the baseline in the same time, and speed-ups."""
    tasks = {task: runs for (task, kind), runs in found.items() if kind == length and "baseline" in runs}
    if not tasks:
        return NOT_RUN
    rows = []
    for name in COMPARED:
        speedups = [_speedup(runs, name) for runs in tasks.values() if name in runs]
        if speedups:
            ends = dict.fromkeys(f"{speedup:.1f}" for speedup in (min(speedups), max(speedups)))
            rows.append([name, *(_ahead(runs, name) for runs in tasks.values()), " to ".join(ends)])
    return table(["method", *tasks, "speed-up"], rows)


def at_equal_steps(runs: Runs, name: str) -> str:
    """Accuracy of a method less that of the baseline of as many steps, and its speed-up; empty if not run."""
    if name not in runs or "baseline" not in runs:
        return ""
    gaps = [run["test_metric"] - runs["baseline"][seed]["test_metric"] for seed, run in runs[name].items()]
    return f"{points(with_error(gaps))}, {_speedup(runs, name):.2f}x"


def outcome(runs: Runs, rates: Grids) -> str:
    """One row per method, the fastest first. A star marks a learning rate at an edge of its grid."""
    rows = []
    for name in sorted(runs, key=lambda name: seconds(runs[name].values())):
        by_seed = list(runs[name].values())
        rate = by_seed[0]["rate"]
        edge = "\\*" if rate in (min(rates[name]), max(rates[name])) else ""
        accuracy = mean_percent([run["test_metric"] for run in by_seed])
        speed = [f"{seconds(by_seed):.0f}", f"{_speedup(runs, name):.2f}"]
        rows.append([name, f"{rate:.2g}{edge}", accuracy, *speed, *_against_baseline(runs, name), _close(runs, name)])
    header = ["method", "rate", "accuracy, %", "seconds", "speed-up"]
    return table([*header, "baseline in that time, %", "ahead by, points", "time to 99 % of baseline"], rows)


def automatic(runs: Runs) -> str:
    """One row per target of automatic periods, beside the best fixed setting that takes no longer.

    The best is chosen by accuracy on test rows, which is in its favour. Empty without automatic periods.
    """
    rows = []
    fixed = [name for name in runs if name.startswith("multirate")]
    for name in (name for name in runs if name.startswith("auto")):
        by_seed = list(runs[name].values())
        fit = [other for other in fixed if seconds(runs[other].values()) <= MARGIN * seconds(by_seed)]
        best = max(fit, key=lambda other: metric(runs[other].values()), default=None)
        theirs = "" if best is None else mean_percent([run["test_metric"] for run in runs[best].values()])
        accuracy = mean_percent([run["test_metric"] for run in by_seed])
        own = [name.removeprefix("auto "), f"{_speedup(runs, name):.2f}", accuracy, *_against_baseline(runs, name)]
        rows.append([*own, best or "", theirs])
    header = ["target", "speed-up", "accuracy, %", "baseline in that time, %", "ahead by, points"]
    header += ["best fixed multirate setting in that time", "its accuracy, %"]
    return table(header, rows) if rows else ""


def budgets(runs: Runs) -> str:
    """Accuracy at shares of the baseline's time; a method counts with its last evaluation before."""
    whole = seconds(runs["baseline"].values())
    line = baseline_by_time(runs, list(runs["baseline"]))
    rows = [["baseline, schedule of that length", *(percent(in_time(line, share * whole)) for share in BUDGETS)]]
    for name in (name for name in runs if name == "baseline" or not is_baseline(name)):
        cells = []
        for share in BUDGETS:
            values = [at(run, share * whole) for run in runs[name].values()]
            known = [value for value in values if value is not None]
            cells.append(percent(fmean(known) if len(known) == len(values) else None))
        rows.append([name, *cells])
    return table(["method", *(f"{share:g}" for share in BUDGETS)], rows)


def figure(runs: Runs, title: str, path: Path) -> None:
    """Accuracy against seconds of all methods."""
    methods = {name: _curves(runs, name) for name in runs if not is_baseline(name)}
    line = [(time, 100 * value) for time, value in baseline_by_time(runs, list(runs["baseline"]))]
    accuracy_by_time(_curves(runs, "baseline"), methods, line, title, path)


def _curves(runs: Runs, name: str) -> Curves:
    columns = list(zip(*(run["curve"] for run in runs[name].values()), strict=True))
    times = [fmean(point["process_seconds"] for point in column) for column in columns]
    values: Sequence[Sequence[float]] = [[100 * point["metric"] for point in column] for column in columns]
    return Curves(times, values, is_multirate(name))


def _ahead(runs: Runs, name: str) -> str:
    """Points and their standard error; empty where it was not run, or is faster than any baseline run."""
    return points(ahead(runs, name) if name in runs else None)


def _speedup(runs: Runs, name: str) -> float:
    return seconds(runs["baseline"].values()) / seconds(runs[name].values())


def _against_baseline(runs: Runs, name: str) -> tuple[str, str]:
    """The baseline in the time of a method, and how far the method is ahead of it."""
    gap = None if is_baseline(name) else ahead(runs, name)
    if gap is None:
        return "", ""
    return percent(metric(runs[name].values()) - gap[0]), points(gap)


def _close(runs: Runs, name: str) -> str:
    """Mean share of the time of the baseline until all seeds of ``name`` are close to its final accuracy."""
    level, whole = CLOSE * metric(runs["baseline"].values()), seconds(runs["baseline"].values())
    times = [time_to(run, level) for run in runs[name].values()]
    reached = [time for time in times if time is not None]
    return f"{fmean(reached) / whole:.2f}" if len(reached) == len(times) else f"{len(reached)} of {len(times)} seeds"
