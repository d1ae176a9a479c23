"""Compare multirate training with other ways to fine-tune for less, and keep one line of results for each run.

    python -m benchmarks equal-steps --suite trec --data-dir DIR
    python -m benchmarks equal-steps --suite all --data-dir DIR --jobs 2
    python -m benchmarks report                                    # tables and figures from the results

A run whose result is there is not repeated, so a suite that was killed continues. Each method has three trials for
each length, with a separate seed, and takes the rate with the best accuracy on validation rows to all seeds of that
length. Runs go in processes that are pinned to one core each, methods in turn. Where a suite continues with another
commit or on another processor, the baseline is run beside it once more, as a reference for seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.accuracy.chosen_runs import best_rate, grids
from benchmarks.accuracy.machine_correction import conditions
from benchmarks.accuracy.methods import DEFAULT_METHODS, METHODS
from benchmarks.accuracy.results import RESULTS, Result, ResultsFile
from benchmarks.accuracy.resumable_runs import check_settings
from benchmarks.accuracy.suite_command import add_suite_options, start
from benchmarks.accuracy.tasks import TASKS, InputError, Task, missing
from benchmarks.accuracy.train_one import Spec, run
from benchmarks.accuracy.worker_pool import results_of, workers
from benchmarks.commands import parser_of


TRIAL_SEED = 100


def trials(task: Task, length: str, methods: Sequence[str]) -> list[Spec]:
    """Three learning rates for each method."""
    return [
        Spec(task.name, length, name, rate * METHODS[name].rate_scale, TRIAL_SEED, "trial")
        for rate in task.rates
        for name in methods
    ]


def finals(task: Task, length: str, rates: dict[str, float], seeds: int) -> list[Spec]:
    """All seeds for each method, at its chosen rate."""
    return [
        Spec(task.name, length, name, rate, seed, "final") for seed in range(seeds) for name, rate in rates.items()
    ]


def chosen_rates(results: dict[Spec, Result]) -> dict[str, float]:
    """The best rate of each method, of its trials."""
    return {name: best_rate(grid) for name, grid in grids(results.values()).items()}


class Suite:
    """The runs of one task and length: those of its file, and the others, which are run and added to it."""

    def __init__(self, task: Task, length: str, options: argparse.Namespace) -> None:
        self.task, self.length = task, length
        self._options = options
        self._file = ResultsFile(options.out, task.name, length)

    def run(self, seeds: int, pool: Any, bar: Any) -> None:
        """Trials, the choice of rates, and runs at the chosen rates."""
        rates = chosen_rates(self._run_all(trials(self.task, self.length, self._options.methods), pool, bar))
        specs = finals(self.task, self.length, rates, seeds)
        references = self._references(seeds) if any(self._known(spec) is None for spec in specs) else []
        bar.total += len(references)
        self._run_all(sorted(references + specs, key=lambda spec: spec.seed), pool, bar)

    def _references(self, seeds: int) -> list[Spec]:
        """The baseline once more for each seed, if what there is of it is of another commit or processor."""
        rates = grids(self._file.runs).get("baseline")
        if rates is None:
            return []
        baseline = finals(self.task, self.length, {"baseline": best_rate(rates)}, seeds)
        known = [result for spec in baseline if (result := self._known(spec)) is not None]
        if not known or any(conditions(result) == self._options.conditions for result in known):
            return []
        return [replace(spec, role="reference") for spec in baseline]

    def _known(self, spec: Spec) -> Result | None:
        """The result of ``spec`` in the file, if there is one. Every pair of conditions has its own references."""
        for result in self._file.runs:
            same = all(result[name] == value for name, value in vars(spec).items())
            if same and (spec.role != "reference" or conditions(result) == self._options.conditions):
                return result
        return None

    def _run_all(self, specs: Sequence[Spec], pool: Any, bar: Any) -> dict[Spec, Result]:
        """Results of ``specs``: those of the file, and the others run now, in this order.

        Raises:
            InputError: the file was measured with another configuration.
        """
        check_settings(self._file, ((spec.method, spec.settings()) for spec in specs))
        results = {spec: known for spec in specs if (known := self._known(spec)) is not None}
        bar.update(len(results))
        calls = {spec: (run, spec, self._options.data_dir) for spec in specs if spec not in results}
        for spec, result in results_of(calls, pool):
            result["machine"] |= self._options.measured
            results[spec] = result
            self._file.append(result)  # by this process only: workers return their results
            bar.set_postfix_str(f"{spec.method}, {spec.length}: {result['validation_metric']:.3f}")
            bar.update()
        return results


def run_task(task: Task, options: argparse.Namespace, pool: Any) -> None:
    """All lengths of a task."""
    seeds = options.seeds or task.seeds
    lengths = dict(task.epochs) if options.length == "both" else [options.length]
    number = len(options.methods) * (len(task.rates) + seeds) * len(lengths)
    with tqdm(total=number, desc=task.name, disable=options.quiet) as bar:
        for length in lengths:
            Suite(task, length, options).run(seeds, pool, bar)


def run_suites(options: argparse.Namespace) -> None:
    """All tasks that are asked for.

    Raises:
        InputError: the data of the one task are not there.
    """
    options.conditions = (options.measured["commit"], machine.processor_of(machine.hardware()))
    with workers(options.jobs) as pool:
        for name in TASKS if options.suite == "all" else [options.suite]:
            absent = missing(TASKS[name], options.data_dir)
            if absent and options.suite != "all":
                raise InputError(f"--suite {name} cannot run: {absent}.")
            if absent:
                print(f"{name} is skipped: {absent}.")
                continue
            run_task(TASKS[name], options, pool)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of("python -m benchmarks equal-steps", __doc__)
    parser.add_argument("--suite", choices=[*TASKS, "all"], required=True, help="the task, or all of them")
    add_suite_options(parser, RESULTS)
    parser.add_argument(
        "--length", choices=["short", "long", "both"], default="both", help="one epoch, three, or both"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS), metavar="NAME",
        help="names in quotes, as in the tables (default: those that the documentation shows)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, help="number of seeds (default: 3)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the suites."""
    start(parsed(argv), run_suites)
