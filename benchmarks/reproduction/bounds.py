"""Check bounds on the convergence of multirate SGD numerically: the printed one, and one that holds.

    python -m benchmarks reproduce bounds        # about three minutes on one core
    python -m benchmarks report                     # docs/results/bounds.md from the results

The scheme is that of the package: SGD without momentum, slow groups drift along the gradient of the minibatch of their
last full step. For each problem, step size, number of groups and period, the squared gradient of the loss is averaged
over all steps and many draws of the noise. What is there is not computed again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.results import RESULTS, Result, ResultsFile
from benchmarks.accuracy.suite_command import start
from benchmarks.commands import parser_of
from benchmarks.machine import hardware, versions
from benchmarks.reproduction.bounds_formulas import BOUNDS, Constants
from benchmarks.reproduction.bounds_problems import PROBLEMS, Problem
from benchmarks.reproduction.bounds_scheme import Setting, averages, slow_part
from benchmarks.tables import table


FOLDER = RESULTS / "reproduction"
LENGTH = "bounds"
"""Second part of the names of the files of results."""

PERIODS = (1, 2, 5, 10, 20, 50, 100, 200)
SIGMAS = 3
"""Standard errors by which a measured mean must be above a bound to count as a violation."""


@dataclass(frozen=True)
class Series:
    """Runs that differ in their period.

    Attributes:
        problem: Name of the problem.
        h: Inner step size.
        groups: Number of groups, of which one is fast.
        span: Step size times steps.
        at_minimum: Whether runs start at the minimum; otherwise at zero.
    """

    problem: str
    h: float
    groups: int = 2
    span: float = 20.0
    at_minimum: bool = True

    def steps(self) -> int:
        """Number of steps: a multiple of twice each period."""
        return max(1, round(self.span / self.h / (2 * PERIODS[-1]))) * 2 * PERIODS[-1]

    def periods(self, problem: Problem) -> list[int]:
        """Those with which a step of the slow part is stable."""
        return [k for k in PERIODS if self.h * k * problem.smoothness <= 1]

    def constants(self, problem: Problem) -> Constants:
        """What the bounds need."""
        slow = slow_part(problem.size, self.groups)
        gap = float(problem.loss(self.start(problem)) - problem.loss(problem.minimum))
        every = torch.ones_like(slow)
        parts = problem.moment(slow) + (problem.moment(~slow) if not slow.all() else 0.0)
        return Constants(gap, problem.smoothness, problem.moment(every), self.groups, parts, problem.variance(slow))

    def start(self, problem: Problem) -> torch.Tensor:
        """First parameters."""
        return problem.minimum if self.at_minimum else torch.zeros_like(problem.minimum)


SERIES = (
    *(Series("huber", h) for h in (1e-2, 1e-3, 1e-4)),
    *(Series("quadratic", h, groups) for h in (1e-2, 1e-3) for groups in (2, 4, 8)),
    *(Series("logistic", h, groups, 40.0, at_minimum=False) for h in (1e-2, 1e-3) for groups in (2, 3)),
)


def measured(series: Series, draws: int) -> Iterator[dict[str, Any]]:
    """Averages and bounds at each period."""
    problem = PROBLEMS[series.problem]()
    slow, periods, known = slow_part(problem.size, series.groups), series.periods(problem), series.constants(problem)
    setting = Setting(slow, series.h, periods, series.steps(), draws)
    found = averages(problem, series.start(problem), setting)
    for k, values in zip(periods, found, strict=True):
        figures = {name: value for name, value in vars(values).items() if name != "last"}
        bounds = {name: bound(known, series.h, k, series.steps()) for name, bound in BOUNDS.items()}
        yield {"k": k, "steps": series.steps(), "draws": draws, **figures, **bounds, "constants": asdict(known)}


def violates(run: Mapping[str, Any], bound: str) -> bool:
    """Whether what was measured is above a bound by more than its error allows."""
    return bool(run["mean"] - SIGMAS * run["error"] > run[bound])


def run_series(series: Series, draws: int, file: ResultsFile, machine: Mapping[str, Any]) -> list[Result]:
    """The runs of a series: those of the file, and those that it lacks, which are added to it."""
    words = {"method": f"{series.groups} groups", "h": series.h, "draws": draws}
    settings = {"task": {"at_minimum": series.at_minimum, "span": series.span}, "method": {"groups": series.groups}}

    def known() -> dict[int, Result]:
        return {run["k"]: run for run in file.runs if all(run[name] == value for name, value in words.items())}

    if set(series.periods(PROBLEMS[series.problem]())) - set(known()):
        for point in measured(series, draws):
            if point["k"] not in known():
                shared = {"settings": settings, "machine": dict(machine)}
                file.append({"task": series.problem, "length": LENGTH, **words, **point, **shared})
    return list(known().values())


def summary(runs: list[Result]) -> str:
    """Measured means beside the bounds; a star marks a bound that is violated."""
    rows = []
    for run in runs:
        figures = [f"{run[name]:.5f}{' *' if violates(run, name) else ''}" for name in BOUNDS]
        words = [run["task"], run["method"], f"{run['h']:g}", str(run["k"])]
        rows.append([*words, f"{run['mean']:.5f} ± {run['error']:.5f}", *figures])
    return table(["problem", "groups", "h", "k", "measured", *BOUNDS], rows)


def run(options: argparse.Namespace) -> None:
    """All series."""
    torch.set_num_threads(1)
    machine = {**hardware(), "versions": versions(), **options.measured}
    found = []
    for series in SERIES:
        file = ResultsFile(options.out, series.problem, LENGTH)
        found += run_series(series, options.draws, file, machine)
    print(summary(found))


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and print all."""
    parser = parser_of("python -m benchmarks reproduce bounds", __doc__)
    parser.add_argument("--draws", type=int, default=400, help="independent runs of each setting (default: 400)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted files, for trying out")
    start(parser.parse_args(argv), run)


if __name__ == "__main__":
    main()
