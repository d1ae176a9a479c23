"""What the runs of one task and length came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from benchmarks.accuracy.chosen_runs import Grids, grids
from benchmarks.accuracy.results import ResultsFile
from benchmarks.budgets.cells import Cell, Cells, cells_of, differences
from benchmarks.reproduction.contenders import ALL, EXPERIMENTS, HEAD, Experiment
from benchmarks.reproduction.lengths import last_gain
from benchmarks.reproduction.tasks import TASKS


LEVEL = 0.005
"""Accuracy by which multirate training may be behind all parameters and still count as level: half a point."""


@dataclass(frozen=True)
class Outcome:
    """Runs of one task and length.

    Attributes:
        experiment: The experiment.
        task: Name of the task.
        length: Number of epochs of all parameters.
        rows: Runs with as many steps as all parameters, by row and seed.
        in_time: All parameters in the seconds of a row, by this row and by seed.
        grids: Accuracy on validation rows by row and learning rate.
        lower: Runs at lower learning rates than the chosen one, by row, rate and seed.
    """

    experiment: Experiment
    task: str
    length: str
    rows: Cells
    in_time: Cells
    grids: Grids
    lower: Mapping[str, Mapping[float, Cell]] = field(default_factory=dict)

    def seconds(self, row: str) -> float:
        """Mean reference seconds."""
        return fmean(run["reference_seconds"] for run in self.rows[row].values())

    def speedup(self, row: str) -> float | None:
        """Over all parameters; None if they were not run."""
        return self.seconds(ALL) / self.seconds(row) if ALL in self.rows else None

    def gaps(self, row: str, reference: str = ALL) -> list[float]:
        """Accuracy less that of another row, for the seeds that both have."""
        return differences(self.rows[row], self.rows.get(reference, {}))

    def gaps_in_time(self, row: str) -> list[float]:
        """Accuracy less that of all parameters in the seconds of the row."""
        return differences(self.rows[row], self.in_time.get(row, {}))

    def curve(self, row: str) -> list[tuple[float, float]]:
        """Share of the steps and mean accuracy, at the points that all seeds have."""
        runs = list(self.rows[row].values())
        points = zip(*(run["curve"] for run in runs), strict=True)
        return [(p[0]["step"] / runs[0]["steps"], fmean(one["metric"] for one in p)) for p in points]

    def level_from(self, row: str) -> float | None:
        """Share of the steps from which the mean curve stays no more than `LEVEL` behind that of all parameters."""
        pairs = list(zip(self.curve(row), self.curve(ALL), strict=True))
        behind = [share for (share, value), (_, other) in pairs if value < other - LEVEL]
        later = [share for (share, _), _ in pairs if not behind or share > behind[-1]]
        return later[0] if later else None


def outcomes(folder: Path, *, allow_dirty: bool = False) -> list[Outcome]:
    """Those of all tasks and lengths with results.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found = []
    for experiment, file in _files(folder):
        cells = cells_of(file, allow_dirty=allow_dirty, by="time_of")
        rows = cells.pop("", {})
        if rows:
            in_time = {row: of_time[ALL] for row, of_time in cells.items()}
            lower = _lower(file, rows, experiment.multirate)
            found.append(Outcome(experiment, file.task, file.length, rows, in_time, grids(file.runs), lower))
    return found


def _lower(file: ResultsFile, rows: Cells, names: Sequence[str]) -> dict[str, dict[float, Cell]]:
    """Runs below the chosen rate, the highest rate first."""
    found: dict[str, dict[float, Cell]] = {}
    for run in sorted(file.runs, key=lambda run: -run["rate"]):
        name, cell = run["method"], rows.get(run["method"])
        if name in names and cell and run["role"] == "final" and run["rate"] < next(iter(cell.values()))["rate"]:
            found.setdefault(name, {}).setdefault(run["rate"], {})[run["seed"]] = run
    return found


LEAST_SEEDS = 3
"""Number of seeds that a verdict needs."""


def compared(found: list[Outcome]) -> list[Outcome]:
    """Of each task the outcome of the longest training that has multirate training and all parameters.

    Both need `LEAST_SEEDS` common seeds.
    """
    both = [
        outcome
        for outcome in found
        if len(outcome.rows.get(HEAD, {}).keys() & outcome.rows.get(ALL, {}).keys()) >= LEAST_SEEDS
    ]
    return list({outcome.task: outcome for outcome in both}.values())


def ends(folder: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Task -> length -> accuracy of all parameters on validation rows, and its gain in the last third of the steps."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for _, file in _files(folder):
        for run in file.runs:
            if run["role"] == "length":
                found.setdefault(file.task, {})[file.length] = run["curve"][-1]["metric"], last_gain(run["curve"])
    return found


def _files(folder: Path) -> Iterator[tuple[Experiment, ResultsFile]]:
    """Files of results in the order of tasks and lengths."""
    for experiment in EXPERIMENTS.values():
        for task in (*experiment.tasks, *experiment.full_tasks):
            for length in dict(TASKS[task].epochs):
                file = ResultsFile(folder, task, length)
                if file.runs:
                    yield experiment, file
