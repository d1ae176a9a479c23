"""Part ``equal_time``: accuracy at shares of the baseline's seconds on this GPU, for two tasks of short texts.

It is `python -m benchmarks accuracy` on the device, with few contenders. Its runs are kept one by one in a folder
beside the results, so a part that was killed continues. The data come with Python packages; without them the part is
skipped.
"""

from __future__ import annotations

from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import transformers

from benchmarks.gpu.cells import Bench, Cell
from benchmarks.gpu.place import SkippedError


PART = "equal_time"
TASKS = ("embedded", "imdb")
BUDGETS = ("0.25", "0.4")
CONTENDERS = (
    "baseline",
    "baseline + head rate",
    "ladder 1,2,4",
    "ladder 1,2,4 + head rate",
    "frozen below last:2 + head rate + head start",
)
SEEDS, PASSES = 5, 3
FOLDER = "equal_time"


def cells() -> list[Cell]:
    """One cell for each task."""
    return [Cell(PART, task, 200, partial(measure, task)) for task in TASKS]


def measure(task: str, bench: Bench) -> dict[str, Any]:
    """All runs of a task that are not there yet, and their comparison.

    Raises:
        SkippedError: a package, or the transformers that the benchmark is made for, is not installed.
    """
    if bench.tiny:
        raise SkippedError("not with --tiny")
    if int(transformers.__version__.partition(".")[0]) < 5:
        raise SkippedError("the benchmark at equal time needs transformers 5")
    options = bench.options
    return compare(task, options.out.parent / FOLDER, bench.place.kind, options.data_dir)


def compare(
    task: str, out: Path, device: str, data_dir: Path | None, seeds: int = SEEDS, passes: int = PASSES
) -> dict[str, Any]:
    """Accuracy of the contenders by budget, and points ahead of the best baseline.

    Raises:
        SkippedError: a package is not installed.
    """
    try:
        from benchmarks.accuracy.tasks import InputError
        from benchmarks.budgets import suite
    except ImportError as error:
        raise SkippedError(f"needs the package {error.name}, as the extra 'examples' installs it") from error
    words = ["--tasks", task, "--lengths", "short", "--budgets", *BUDGETS, "--contenders", *CONTENDERS]
    words += ["--seeds", str(seeds), "--passes", str(passes), "--jobs", "0", "--out", str(out), "--device", device]
    words += ["--allow-dirty", "--quiet", *(["--data-dir", str(data_dir)] if data_dir else [])]
    parsed = suite.parsed(words)
    parsed.measured = {"commit": "see the results of the GPU", "dirty": True}
    try:
        suite.run_suites(parsed)
    except InputError as error:
        raise SkippedError(str(error)) from error
    return {"task": task, "seeds": seeds, "budgets": summary(out, task)}


def summary(out: Path, task: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Budget -> contender -> mean accuracy, steps, whether it is the expert baseline, and points ahead of it."""
    from benchmarks.accuracy.results import ResultsFile
    from benchmarks.budgets.cells import ahead, cells_of, expert, mean
    from benchmarks.budgets.statistics import interval

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for budget, of_budget in cells_of(ResultsFile(out, task, "short"), allow_dirty=True).items():
        best, gaps = expert(of_budget), ahead({task: of_budget})
        found[f"{budget:g}"] = {
            name: {
                "accuracy": mean(cell),
                "steps": mean(cell, "steps"),
                "expert": name == best,
                "ahead": [v for v in vars(interval(gaps[name][task])).values() if isfinite(v)]
                if name in gaps
                else None,
            }
            for name, cell in of_budget.items()
        }
    return found
