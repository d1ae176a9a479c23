"""The runs that tables show: those at the learning rate that did best on validation rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.accuracy.machine_correction import Runs, corrected, reference_seconds
from benchmarks.accuracy.results import Result, read_results


Grids = dict[str, dict[float, float]]
"""Accuracy on validation rows by method and learning rate."""


def chosen_runs(folder: Path, *, allow_dirty: bool = False) -> dict[tuple[str, str], Runs]:
    """Runs at the chosen rates by task and length, with corrected seconds.

    Runs at a rate that was chosen from a smaller grid are left out.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found: dict[tuple[str, str], Runs] = {}
    for file in read_results(folder):
        rates = grids(file.runs)
        runs: Runs = defaultdict(dict)
        finals = (run for run in file.runs if run["role"] == "final")
        for run in sorted(finals, key=lambda run: (run["method"], run["seed"])):
            if run["machine"]["dirty"] and not allow_dirty:
                raise ValueError(
                    f"{file.path} has a run of {run['method']!r} on files that were not committed: run it again, or "
                    "give --allow-dirty."
                )
            if run["rate"] == best_rate(rates[run["method"]]):
                runs[run["method"]][run["seed"]] = run
        if runs:
            found[file.task, file.length] = corrected(runs, reference_seconds(file.runs, allow_dirty=allow_dirty))
    return found


def best_rate(grid: Mapping[float, float]) -> float:
    """The learning rate with the best accuracy on validation rows; of equal ones the lowest."""
    return min(grid, key=lambda rate: (-grid[rate], rate))


def grids(runs: Iterable[Result]) -> Grids:
    """Accuracy on validation rows of the trials, by method and learning rate."""
    found: Grids = defaultdict(dict)
    for run in runs:
        if run["role"] == "trial":
            found[run["method"]][run["rate"]] = run["validation_metric"]
    return found


def all_grids(folder: Path) -> dict[tuple[str, str], Grids]:
    """Those of all tasks and lengths."""
    return {(file.task, file.length): grids(file.runs) for file in read_results(folder)}
