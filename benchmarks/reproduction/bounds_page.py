"""Tables and the figure of docs/results/bounds.md, from the results of `reproduce bounds`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.plots import Panel, bounds_by_period
from benchmarks.reproduction.bounds import LENGTH, PERIODS, violates
from benchmarks.reproduction.bounds_formulas import BOUNDS
from benchmarks.reproduction.bounds_problems import PROBLEMS
from benchmarks.tables import table


NOT_YET = "Not measured yet."
FIGURE = "bounds.png"
LABELS = {"huber": "Huber loss", "quadratic": "quadratic", "logistic": "logistic regression"}

Points = dict[tuple[str, str, float], list[Result]]
"""Runs with rising period, by problem, number of groups in words, and step size."""


def read_points(folder: Path, *, allow_dirty: bool = False) -> Points:
    """All measured points in ``folder``.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    found: Points = {}
    for problem in PROBLEMS:
        file = ResultsFile(folder, problem, LENGTH)
        for run in file.runs:
            if run["machine"]["dirty"] and not allow_dirty:
                raise ValueError(f"{file.path} has results of files that were not committed: run it again.")
            found.setdefault((problem, run["method"], run["h"]), []).append(run)
    return {key: sorted(runs, key=lambda run: run["k"]) for key, runs in found.items()}


def tables(points: Points) -> dict[str, Callable[[], str]]:
    """The tables, by the name in the marker."""
    found = {
        "bounds problems": problems,
        "bounds held": held,
        "bounds violated": violated,
        "bounds floors": floors,
        "bounds equal": equal_products,
    }
    return {name: lambda write=write: write(points) if points else NOT_YET for name, write in found.items()}


def problems(points: Points) -> str:
    """Constants of each problem and number of groups."""
    rows = {}
    for (problem, groups, _), (run, *_) in points.items():
        known = run["constants"]
        names = ("smoothness", "moment", "parts", "variance", "gap")
        rows[problem, groups] = [LABELS[problem], groups, *(f"{known[name]:.4g}" for name in names)]
    return table(["problem", "groups", "L", "M", "M of both parts", "variance", r"f at start - f\*"], rows.values())


def held(points: Points) -> str:
    """Number of points at which each bound is violated, and the largest ratio of what is measured to it."""
    rows = []
    for problem in dict.fromkeys(problem for problem, _, _ in points):
        runs = [run for (name, _, _), found in points.items() if name == problem for run in found]
        cells = []
        for bound in BOUNDS:
            number = sum(violates(run, bound) for run in runs)
            cells += [str(number), f"{max(run['mean'] / run[bound] for run in runs):.2f}"]
        rows.append([LABELS[problem], str(len(runs)), *cells])
    columns = (column for bound in BOUNDS for column in (f"{bound}: violated", "largest measured / bound"))
    return table(["problem", "points", *columns], rows)


def violated(points: Points) -> str:
    """The points at which the printed bound is violated."""
    rows = []
    for (problem, groups, h), runs in points.items():
        for run in runs:
            if violates(run, "printed"):
                measured = f"{figure(run['mean'])} ± {figure(run['error'])}"
                bounds = [figure(run[name]) for name in BOUNDS]
                rows.append([LABELS[problem], groups, f"{h:g}", str(run["k"]), measured, *bounds])
    return table(["problem", "groups", "h", "k", "measured", *BOUNDS], rows)


def figure(value: float) -> str:
    """Two digits that count, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}" if value else "0"


def floors(points: Points) -> str:
    """Floors as multiples of the one at period 1."""
    rows = []
    for (problem, groups, h), runs in points.items():
        by_period = {run["k"]: run["floor"] for run in runs}
        cells = [f"{by_period[k] / by_period[1]:.1f}" if k in by_period else "" for k in PERIODS]
        rows.append([LABELS[problem], groups, f"{h:g}", figure(by_period[1]), *cells])
    return table(["problem", "groups", "h", "floor at k = 1", *(f"k = {k}" for k in PERIODS)], rows)


def equal_products(points: Points) -> str:
    """Floors of the Huber loss where h k is the same."""
    by_product: dict[str, dict[float, Result]] = {}
    for (problem, _, h), runs in points.items():
        for run in runs:
            if problem == "huber":
                by_product.setdefault(f"{h * run['k']:.3g}", {})[h] = run
    sizes = sorted({h for of_product in by_product.values() for h in of_product}, reverse=True)
    rows = [
        [product, *(_floor(of_product.get(h)) for h in sizes)]
        for product, of_product in sorted(by_product.items(), key=lambda item: float(item[0]))
        if len(of_product) == len(sizes)
    ]
    return table(["h k", *(f"floor at h = {h:g}" for h in sizes)], rows)


def _floor(run: Mapping[str, float] | None) -> str:
    return f"{run['floor']:.4f} ± {run['floor_error']:.4f} (k = {run['k']})" if run else ""


def draw(points: Points, folder: Path) -> None:
    """Write the figure: two groups, a panel for each problem and step size."""
    panels = []
    for (problem, groups, h), runs in points.items():
        if groups == "2 groups":
            lines = {name: [run[name] for run in runs] for name in BOUNDS}
            columns = [[run[name] for run in runs] for name in ("k", "mean", "error")]
            panels.append(Panel(f"{LABELS[problem]}, h = {h:g}", *columns, lines))
    if panels:
        bounds_by_period(panels, folder / FIGURE)
