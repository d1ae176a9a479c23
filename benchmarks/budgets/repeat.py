"""Repeat runs whose results are kept: the same rate, seed and steps; and show both accuracies."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.accuracy.tasks import InputError, Task
from benchmarks.budgets.cells import cells_of
from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.plan import Plan
from benchmarks.budgets.run_one import Spec, run
from benchmarks.tables import percent, table


HEADER = ["task", "length", "budget", "contender", "seed", "rate", "steps", "kept, %", "again, %", "difference"]


def repeated(of_task: Sequence[tuple[Task, Sequence[Contender]]], options: argparse.Namespace, pool: Any) -> str:
    """Run the kept runs of these tasks and contenders again, and return a table of both accuracies on test rows.

    Args:
        of_task: Tasks with their contenders.
        options: The command line: lengths, budgets and number of seeds that are repeated, and the folder of results.
        pool: Worker processes; None runs here.

    Raises:
        InputError: none of the runs is kept, or a contender had other settings.
    """
    kept = [result for task, contenders in of_task for result in _kept(task, contenders, options)]
    if not kept:
        raise InputError(f"{options.out} has no result of these tasks, lengths, budgets, contenders and seeds.")
    words = [(_spec(result), _plan(result), options.data_dir) for result in kept]
    made = (run(*each) for each in words) if pool is None else pool.map(run, *zip(*words, strict=True))
    rows = [
        _row(result, again)
        for result, again in zip(kept, tqdm(made, total=len(kept), disable=options.quiet), strict=True)
    ]
    return table(HEADER, rows)


def _kept(task: Task, contenders: Sequence[Contender], options: argparse.Namespace) -> Iterator[Result]:
    for length in options.lengths:
        file = ResultsFile(options.out, task.name, length)
        for budget, cells in cells_of(file, allow_dirty=options.allow_dirty).items():
            for contender in contenders if budget in options.budgets else ():
                for seed, result in cells.get(contender.name, {}).items():
                    if seed < options.seeds:
                        _require_same(file, result)
                        yield result


def _require_same(file: ResultsFile, result: Result) -> None:
    try:
        file.require_same(result["method"], _spec(result).settings())
    except ValueError as error:
        raise InputError(f"{error} Check out commit {result['machine']['commit'][:7]} to repeat it.") from error


def _spec(result: Result) -> Spec:
    return Spec(**{name: result[name] for name in Spec.__dataclass_fields__})


def _plan(result: Result) -> Plan:
    return Plan(result["steps"], result["kinds"], result["reference_seconds"], result["budget_seconds"])


def _row(kept: Result, again: Result) -> list[str]:
    names = [kept[name] for name in ("task", "length", "budget", "method", "seed", "rate", "steps")]
    shares = [one["test_metric"] for one in (kept, again)]
    return [*map(str, names), *map(percent, shares), f"{100 * (shares[1] - shares[0]):+.1f}"]
