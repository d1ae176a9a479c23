"""Train from scratch: random subsets of a perceptron and of a language model, and averaged copies on patches.

    python -m benchmarks reproduce scratch --tables perceptron --plan
    python -m benchmarks reproduce scratch --tables text patches --data-dir DIR --jobs 2
    python -m benchmarks report                     # docs/results/from_scratch.md from the results

Each table has the paper's baselines and more, and a rule that chooses settings by trials: see
from_scratch_experiments.py. There is one line of results for each run. A run whose result is there is not repeated, so
a suite that was killed continues. Runs are in order of their seeds, so that it leaves whole comparisons.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from tqdm import tqdm

from benchmarks.accuracy.results import RESULTS, Result, ResultsFile
from benchmarks.accuracy.resumable_runs import check_settings
from benchmarks.accuracy.suite_command import add_suite_options, start
from benchmarks.accuracy.tasks import InputError, Task, missing
from benchmarks.accuracy.worker_pool import results_of, workers
from benchmarks.commands import parser_of
from benchmarks.machine import hardware, versions
from benchmarks.reproduction.from_scratch_experiments import EXPERIMENTS, Choice, Experiment, script


FOLDER = RESULTS / "reproduction"
LENGTH = "scratch"
"""Second part of the names of the files of results."""

SEEDS = 5
TRIAL_SEED = 100


@dataclass(frozen=True)
class Spec:
    """One run.

    Attributes:
        method: Name of the method.
        choice: What the trials choose: names and values.
        seed: Seed of the run.
        role: ``trial``, scored on validation rows; or ``final``, on test rows.
    """

    method: str
    choice: tuple[tuple[str, Any], ...]
    seed: int
    role: str

    def line(self) -> dict[str, Any]:
        """As it stands in the results."""
        return {**vars(self), "choice": dict(self.choice)}


def trial(method: str, *choices: Choice) -> Spec:
    """A trial with the settings of all ``choices``."""
    return Spec(method, _items(*choices), TRIAL_SEED, "trial")


def _items(*choices: Choice) -> tuple[tuple[str, Any], ...]:
    return tuple(item for choice in choices for item in choice.items())


def train(experiment: Experiment, spec: Spec, folder: Any) -> Result:
    """Run ``spec``; all values of the result are plain ones."""
    module, method = script(experiment.script), experiment.method(spec.method)
    role = experiment.trial if spec.role == "trial" else {}
    paths = experiment.paths(folder, trial=spec.role == "trial")
    settings = module.Settings(**{**paths, **experiment.settings, **method.fixed, **dict(spec.choice), **role})
    begun = time.process_time()
    run = module.train(method.trains, spec.seed, settings)
    measured = {"figures": run.final, "curve": run.curve, "seconds": round(time.process_time() - begun, 1)}
    machine = {**hardware(), "versions": versions()}
    return {**spec.line(), **measured, "settings": settings_of(experiment, spec.method), "machine": machine}


def settings_of(experiment: Experiment, name: str) -> dict[str, Any]:
    """What all runs of a table and of a method share."""
    method = experiment.method(name)
    return {"task": dict(experiment.settings), "method": {"trains": method.trains, **method.fixed}}


class Runs:
    """The runs of one table: those of its file, and the others, which are run and added to it."""

    def __init__(self, experiment: Experiment, options: argparse.Namespace) -> None:
        self.experiment = experiment
        self._options = options
        self.file = ResultsFile(options.out, experiment.name, LENGTH)

    def first_round(self) -> list[Spec]:
        """Trials that choose what all methods share."""
        names, choices = self.experiment.first, self.experiment.shared
        return [trial(name, choice) for choice in choices for name in names]

    def second_round(self) -> list[Spec]:
        """Trials that choose the strength of each regulariser."""
        shared = self._shared()
        return [trial(m.name, shared, choice) for m in self.experiment.methods for choice in m.grid]

    def finals(self) -> list[Spec]:
        """All methods for all seeds, each with its choice."""
        chosen = {method.name: self.chosen(method.name) for method in self.experiment.methods}
        return [Spec(name, _items(c), s, "final") for s in range(self._options.seeds) for name, c in chosen.items()]

    def chosen(self, name: str) -> Choice:
        """The settings of a method that the trials chose."""
        shared, grid = self._shared(), self.experiment.method(name).grid
        if not grid:
            return shared
        scores = [self._figures(trial(name, shared, choice))[self.experiment.scored] for choice in grid]
        return {**shared, **grid[self.experiment.best(scores)]}

    def known(self, spec: Spec) -> Result | None:
        """The result of ``spec``, if there is one."""
        line = spec.line()
        return next((run for run in self.file.runs if all(run[name] == line[name] for name in line)), None)

    def missing(self, specs: Sequence[Spec]) -> list[Spec]:
        """Those that the file has not."""
        return [spec for spec in specs if self.known(spec) is None]

    def run_all(self, pool: Any) -> None:
        """Trials of both rounds, then runs at the chosen settings."""
        for round_of in (self.first_round, self.second_round, self.finals):
            self._run(round_of(), pool)

    def _shared(self) -> Choice:
        tried = [(spec.method, dict(spec.choice), self._figures(spec)) for spec in self.first_round()]
        return self.experiment.choose_shared(tried)

    def _figures(self, spec: Spec) -> Mapping[str, float]:
        found = self.known(spec)
        if found is None:
            raise LookupError(f"{spec} has not been run.")
        return dict(found["figures"])

    def _run(self, specs: Sequence[Spec], pool: Any) -> None:
        """Run those of ``specs`` that the file has not, and add their results.

        Raises:
            InputError: the file was measured with another configuration.
        """
        check_settings(self.file, ((s.method, settings_of(self.experiment, s.method)) for s in specs))
        calls = {spec: (train, self.experiment, spec, self._options.data_dir) for spec in self.missing(specs)}
        with tqdm(total=len(calls), desc=self.experiment.name, disable=self._options.quiet or not calls) as bar:
            for _, result in results_of(calls, pool):  # by this process only: workers return their results
                result["machine"] |= self._options.measured
                self.file.append({"task": self.experiment.name, "length": LENGTH, **result})
                bar.update()


def plan(runs: Runs, seeds: int) -> str:
    """Number of runs that are missing, and their hours by the seconds of the runs that are there."""
    every = len(runs.first_round()) + sum(len(m.grid) + seeds for m in runs.experiment.methods)
    there = len(runs.file.runs)
    seconds = [run["seconds"] for run in runs.file.runs]
    hours = f"about {(every - there) * fmean(seconds) / 3600:.2f} core hours" if seconds else "hours are not known yet"
    return f"{runs.experiment.name}: {every} runs, {there} are there; the rest takes {hours}"


def checked(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """The experiment, shortened if that is asked for.

    Raises:
        InputError: its data are not there.
    """
    absent = missing(Task(experiment.name, (), needs=experiment.needs), options.data_dir)
    if absent:
        raise InputError(f"{experiment.name} cannot run: {absent}.")
    if options.epochs:
        return replace(experiment, settings={**experiment.settings, "epochs": options.epochs})
    return experiment


def run(options: argparse.Namespace) -> None:
    """All tables that are asked for."""
    names = [name for name in EXPERIMENTS if name in options.tables]
    with workers(0 if options.plan else options.jobs) as pool:
        for every in [Runs(checked(EXPERIMENTS[name], options), options) for name in names]:
            if options.plan:
                print(plan(every, options.seeds))
            else:
                every.run_all(pool)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing of the tables."""
    parser = parser_of("python -m benchmarks reproduce scratch", __doc__)
    parser.add_argument("--tables", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="default: all")
    add_suite_options(parser, FOLDER)
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"number of seeds (default: {SEEDS})")
    parser.add_argument("--epochs", type=int, help="length of all runs, for trying out; give another --out with it")
    parser.add_argument("--plan", action="store_true", help="only show how many runs are missing, and their hours")
    start(parser.parse_args(argv), run)


if __name__ == "__main__":
    main()
