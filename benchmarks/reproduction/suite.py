"""A suite: the order of all runs of an experiment, and its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.accuracy.results import RESULTS
from benchmarks.accuracy.suite_command import add_suite_options, start
from benchmarks.accuracy.tasks import InputError, Task, missing
from benchmarks.accuracy.worker_pool import workers
from benchmarks.budgets.kinds import PASSES
from benchmarks.budgets.suite import time_kinds
from benchmarks.commands import parser_of
from benchmarks.reproduction import dry_run
from benchmarks.reproduction.contenders import ALL, CONTENDERS, HEAD, Experiment, label
from benchmarks.reproduction.lengths import last_gain, levelled_off
from benchmarks.reproduction.run_one import Spec, timed
from benchmarks.reproduction.runs import Runs
from benchmarks.reproduction.tasks import TASKS, is_full
from benchmarks.tables import table


FOLDER = RESULTS / "reproduction"


class Suite:
    """All runs of an experiment.

    Args:
        experiment: The experiment.
        options: The command line.
        pool: Worker processes; None runs here.
        bar: A progress bar.

    Raises:
        InputError: data are not there, or a task has no such length.
    """

    def __init__(self, experiment: Experiment, options: argparse.Namespace, pool: Any, bar: Any) -> None:
        self.experiment, self._options = experiment, options
        self._pool, self._bar = pool, bar
        self.tasks = [TASKS[name] for name in chosen_tasks(experiment, options)]
        self.rows = [name for name in experiment.rows if name in (options.rows or experiment.rows)]
        self.ablations = list(experiment.ablations) if "ablations" in options.parts else []
        for task in self.tasks:
            self._lengths(task)

    def time(self) -> None:
        """Time the kinds of steps that are not timed yet."""
        wanted = dict.fromkeys([ALL, *self.rows, *self.ablations])
        for task in self.tasks:
            if not is_full(task.name):
                time_kinds(task, [CONTENDERS[name] for name in wanted], self._options, self._pool, timed)

    def run(self) -> None:
        """Lengths and rates of all tasks, then whole comparisons, seed by seed, and the ablations."""
        found = [self._length_of(task) for task in self.tasks]
        if "main" in self._options.parts:
            for runs in found:
                self._choose_rates(runs, self.rows)
            for seed in range(max(self._options.seeds, self._options.more_seeds)):
                for runs in found:
                    self._seed(runs, seed)
        for runs in found if "rates" in self._options.parts else []:
            self._choose_rates(runs, self._lowered)
            for seed in range(self._options.seeds):
                self._add(runs, runs.lower(self._lowered, seed))
        for runs in found if self.ablations else []:
            self._choose_rates(runs, [HEAD, *self.ablations])
            for seed in range(self._options.seeds):
                self._add(runs, runs.finals([HEAD, *self.ablations], seed))

    def plan(self) -> str:
        """Steps and hours of all runs, at the chosen length of each task, or at its middle one."""
        lines, hours = [], 0.0
        for task in self.tasks:
            runs = self._known_length(task)
            specs = self._specs(runs)
            for name, time_of in dict.fromkeys((spec.method, spec.time_of) for spec in specs):
                some = [spec for spec in specs if (spec.method, spec.time_of) == (name, time_of)]
                seconds = sum(runs.core_seconds(spec) for spec in some)
                hours += seconds / 3600
                words = [task.name, runs.length, named(name, time_of), str(runs.planned(some[-1]).steps)]
                lines.append([*words, str(len(some)), f"{seconds / 3600:.2f}"])
        header = ["task", "epochs", "trained", "steps", "runs", "core hours"]
        return f"{table(header, lines)}\n\n{hours:.2f} hours of one core in all; trials at an edge come on top"

    def _specs(self, runs: Runs) -> list[Spec]:
        """All runs of a task and length, without trials beyond an edge."""
        main = "main" in self._options.parts
        rows = [*(self.rows if main else [HEAD]), *self.ablations]
        specs = [runs.probe(), *runs.trials(rows)]
        for seed in range(max(self._options.seeds, self._options.more_seeds)):
            if main:
                specs += [*runs.finals(self._rows_of(seed), seed), *runs.in_time_of(self._timed_of(seed), seed)]
            if seed < self._options.seeds:
                specs += runs.finals(self.ablations, seed)
                specs += runs.lower(self._lowered if "rates" in self._options.parts else [], seed)
        return specs

    def _known_length(self, task: Task) -> Runs:
        """The length that was chosen, the one that is asked for, or the middle one."""
        every = [Runs(task, length, self._options) for length in self._lengths(task)]
        for runs in every:
            result = runs.known(runs.probe())
            if result is not None and levelled_off(result["curve"]):
                return runs
        return every[len(every) // 2]

    def _lengths(self, task: Task) -> list[str]:
        lengths = list(dict(task.epochs))
        wanted = self._options.epochs
        if wanted and wanted not in lengths:
            raise InputError(f"{task.name} has the lengths {', '.join(lengths)}, got --epochs {wanted}.")
        return [wanted] if wanted else lengths

    def _length_of(self, task: Task) -> Runs:
        """The shortest length at which all parameters have levelled off, or else the longest."""
        lengths = self._lengths(task)
        for length in lengths:
            runs = Runs(task, length, self._options)
            if len(lengths) > 1:
                self._add(runs, [runs.probe()])
                curve = (runs.known(runs.probe()) or {})["curve"]
                print(f"{task.name}, {length} epochs: the last third gains {100 * last_gain(curve):+.1f} points")
                if levelled_off(curve):
                    break
        return runs

    def _choose_rates(self, runs: Runs, rows: Sequence[str]) -> None:
        self._add(runs, runs.trials(rows))
        self._add(runs, runs.more_trials(rows))

    def _seed(self, runs: Runs, seed: int) -> None:
        """Rows of one seed, and all parameters in the seconds of some of them."""
        rows, of_time = runs.finals(self._rows_of(seed), seed), self._timed_of(seed)
        if is_full(runs.task.name):  # the seconds are those of the rows
            self._add(runs, rows)
            self._add(runs, runs.in_time_of(of_time, seed))
        else:
            self._add(runs, [*rows, *runs.in_time_of(of_time, seed)])

    def _rows_of(self, seed: int) -> list[str]:
        return [name for name in self.rows if seed < self._options.seeds or name in self.experiment.repeated]

    @property
    def _lowered(self) -> list[str]:
        """Rows that also run at lower rates than the one that the trials chose."""
        return [name for name in self.rows if name in self.experiment.multirate]

    def _timed_of(self, seed: int) -> list[str]:
        return [name for name in self._rows_of(seed) if name in self.experiment.multirate and ALL in self.rows]

    def _add(self, runs: Runs, specs: Sequence[Spec]) -> None:
        self._bar.total += len(specs)
        runs.run_all(specs, self._pool, self._bar)


def named(method: str, time_of: str) -> str:
    """A row of a table."""
    return f"{label(method)}, in the time of {time_of}" if time_of else label(method)


def chosen_tasks(experiment: Experiment, options: argparse.Namespace) -> list[str]:
    """The tasks that are asked for.

    Raises:
        InputError: their data are not there.
    """
    names = experiment.full_tasks if options.full_scale else experiment.tasks
    names = tuple(name for name in names if not options.optimizers or name.rpartition("_")[2] in options.optimizers)
    for name in names:
        absent = missing(TASKS[name], options.data_dir)
        if absent:
            raise InputError(f"{name} cannot run: {absent}.")
    return list(names)


def run_suite(experiment: Experiment, options: argparse.Namespace) -> None:
    """All runs that are asked for."""
    if options.dry_run:
        print(dry_run.table_of(experiment, options.rows or experiment.rows))
        return
    with workers(0 if options.full_scale else options.jobs) as pool, tqdm(total=0, disable=options.quiet) as bar:
        suite = Suite(experiment, options, pool, bar)
        suite.time()
        if options.plan:
            print(suite.plan())
        else:
            suite.run()


def parsed(experiment: Experiment, description: str | None, argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: options contradict each other.
    """
    parser = parser_of(f"python -m benchmarks reproduce {experiment.name}", description)
    add = parser.add_argument
    add_suite_options(parser, FOLDER)
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--more-seeds", type=int, default=10, help=f"seeds of {', '.join(experiment.repeated) or 'no row'}")
    add("--epochs", help="one of the lengths of the task, instead of the rule")
    add(
        "--rows", nargs="+", choices=experiment.rows, metavar="NAME",
        help=f"names in quotes, of: {'; '.join(experiment.rows)} (default: all)",
    )  # fmt: skip
    parts = ["main", *(["ablations"] if experiment.ablations else []), "rates"]
    add("--parts", nargs="+", choices=parts, help="default: all, and main with --full-scale")
    optimizers = [name.rpartition("_")[2] for name in experiment.tasks] if len(experiment.tasks) > 1 else []
    add("--optimizers", nargs="+", choices=optimizers, default=[], help="default: all" if optimizers else "one only")
    add("--passes", type=int, default=PASSES, help=f"times that each kind of step is timed (default: {PASSES})")
    add("--plan", action="store_true", help="only time the kinds of steps, and show steps and hours")
    add("--full-scale", action="store_true", help="networks and data of the paper from the hub, on a GPU if there is")
    add("--dry-run", action="store_true", help="with --full-scale: two steps a row on random data, without a network")
    options = parser.parse_args(argv)
    if (options.dry_run and not options.full_scale) or (options.plan and options.full_scale):
        parser.error("--dry-run needs --full-scale, and --plan is for the size of two cores only")
    options.parts = options.parts or (["main"] if options.full_scale else parts)
    return options


def main(experiment: Experiment, description: str | None, argv: Sequence[str]) -> None:
    """Run the suite of an experiment."""
    given = parsed(experiment, description, argv)
    start(given, lambda options: run_suite(experiment, options), needs_hub=given.full_scale)
