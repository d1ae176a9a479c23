"""Tables and figures of docs/results/from_scratch.md, from the results of `reproduce scratch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.budgets.statistics import Interval, interval
from benchmarks.machine import in_words
from benchmarks.reproduction.from_scratch import LENGTH
from benchmarks.reproduction.from_scratch_experiments import EXPERIMENTS, Experiment, script
from benchmarks.tables import table


NOT_YET = "Not measured yet."

PAPER = {
    "perceptron": {"standard": "98.09 ± 0.07", "drop every step": "98.11 ± 0.10", "multirate": "98.30 ± 0.08"},
    "text": {"SGD": "4.856", "SGD + dropout": "4.920", "multirate": "4.840"},
    "patches": {
        "h = 0.004": "69.3 / 92.9 / 98.9",
        "h = 0.1": "71.7 / 63.9 / 26.7",
        "multirate": "76.5 / 92.7 / 97.3",
    },
}
"""What the paper has, on its data and with its networks."""

Finals = dict[str, dict[int, Result]]
"""Runs by method and seed, at the settings that the trials chose."""


def read_finals(folder: Path, *, allow_dirty: bool = False) -> dict[str, Finals]:
    """The final runs of each table that has some.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found: dict[str, Finals] = {}
    for name, experiment in EXPERIMENTS.items():
        file = ResultsFile(folder, name, LENGTH)
        finals = [run for run in file.runs if run["role"] == "final"]
        if any(run["machine"]["dirty"] for run in finals) and not allow_dirty:
            raise ValueError(f"{file.path} has results of files that were not committed: run it again.")
        for method in experiment.methods:
            of_method = {run["seed"]: run for run in finals if run["method"] == method.name}
            if of_method:
                found.setdefault(name, {})[method.name] = dict(sorted(of_method.items()))
    return found


def tables(found: Mapping[str, Finals]) -> dict[str, Callable[[], str]]:
    """The sections, by the name in the marker."""
    return {
        f"scratch {name}": lambda name=name: section(EXPERIMENTS[name], found[name]) if name in found else NOT_YET
        for name in EXPERIMENTS
    }


def section(experiment: Experiment, finals: Finals) -> str:
    """The table, multirate training against each baseline, the choices, and the figure."""
    parts = [outcome(experiment, finals), "Multirate training minus each other method, runs paired by seed:"]
    parts += [differences(experiment, finals), f"![{experiment.title}](images/{image(experiment)})", machines(finals)]
    return "\n\n".join(parts)


def outcome(experiment: Experiment, finals: Finals) -> str:
    """Mean, standard deviation and range over seeds, beside what the paper has."""
    rows = []
    for name, runs in finals.items():
        cells = [spread([run["figures"][f] for run in runs.values()], experiment.digits) for f in experiment.figures]
        choice = ", ".join(f"{key} {value:g}" for key, value in next(iter(runs.values()))["choice"].items())
        seconds = f"{fmean(run['seconds'] for run in runs.values()):.0f}"
        rows.append([name, *cells, PAPER[experiment.name].get(name, ""), choice, str(len(runs)), seconds])
    return table(["method", *experiment.figures, "paper", "chosen", "seeds", "process seconds"], rows)


def spread(values: list[float], digits: int) -> str:
    """Mean, standard deviation and range."""
    more = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{more} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def differences(experiment: Experiment, finals: Finals) -> str:
    """Mean differences with their 95 % t-intervals over seeds."""
    ours, rows = finals.get("multirate", {}), []
    for name, runs in finals.items():
        if name != "multirate" and ours.keys() & runs.keys():
            cells = []
            for figure in experiment.figures:
                gap = gap_of(finals, "multirate", name, figure)
                brackets = [bracket(gap.low, gap.high, experiment)] if isfinite(gap.low) else []
                cells.append(" ".join((number(gap.value, experiment), *brackets)))
            rows.append([name, *cells])
    return table(["multirate minus", *experiment.figures], rows)


def gap_of(finals: Finals, method: str, other: str, figure: str) -> Interval:
    """Mean of a figure less that of another method, paired by seed, and its 95 % t-interval."""
    seeds = sorted(finals[method].keys() & finals[other].keys())
    return interval([finals[method][s]["figures"][figure] - finals[other][s]["figures"][figure] for s in seeds])


def number(value: float, experiment: Experiment) -> str:
    """A difference with its sign; a rounded zero is positive."""
    return f"{round(value, experiment.digits) + 0.0:+.{experiment.digits}f}"


def bracket(low: float, high: float, experiment: Experiment) -> str:
    """An interval."""
    return f"({number(low, experiment)} to {number(high, experiment)})"


def machines(finals: Finals) -> str:
    """The machines of all runs."""
    every = [run["machine"] for runs in finals.values() for run in runs.values()]
    names = dict.fromkeys(map(in_words, every))
    return "Machine: " + "; ".join(names) + "."


def image(experiment: Experiment) -> str:
    """Name of the figure."""
    return f"scratch_{experiment.name}.png"


def draw(found: Mapping[str, Finals], folder: Path) -> None:
    """Write the figures: the curve of each method, as the scripts of the examples draw it."""
    for name, finals in found.items():
        experiment, comparison = EXPERIMENTS[name], script("comparison")
        runs: list[Any] = [
            comparison.Run(method, seed, run["figures"], run["curve"])
            for method, of_method in finals.items()
            for seed, run in of_method.items()
        ]
        plotted = script(experiment.script).TABLE.plotted
        known = comparison.Table(experiment.title, {method: {} for method in finals}, plotted)
        comparison.plot(known, runs, folder / image(experiment))
