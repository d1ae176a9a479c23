"""The runs of one task and length: which there are, how many steps they take, and what they are charged."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.chosen_runs import best_rate
from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.accuracy.resumable_runs import ResumableRuns
from benchmarks.accuracy.tasks import Task
from benchmarks.budgets.kinds import KINDS, KindsFile
from benchmarks.budgets.plan import Plan, Planner, steps_of_epochs
from benchmarks.budgets.tasks import base_rate
from benchmarks.budgets.trials import TRIAL_SEED, grid, one_more, scores_of
from benchmarks.reproduction.contenders import ALL, CONTENDERS
from benchmarks.reproduction.run_one import POINTS, Spec, run
from benchmarks.reproduction.tasks import is_full


TRIAL_STEPS = 0.4
"""Share of the steps that a trial takes."""

LOWER = (0.5, 0.25)
"""Rates below the chosen one, as multiples of it."""

FORWARD = 1 / 3
"""Seconds of scoring a batch, as a share of those of a step on it. An estimate, for `--plan` only."""


class Runs(ResumableRuns):
    """The runs of one task and length: those of its file, and the others, which are run and added to it.

    Args:
        task: The task.
        length: Name of one of its lengths.
        options: The command line.
    """

    def __init__(self, task: Task, length: str, options: argparse.Namespace) -> None:
        super().__init__(ResultsFile(options.out, task.name, length), options.measured)
        self.task, self.length = task, length
        self._folder: Path | None = options.data_dir
        self._kinds = KindsFile(options.out / KINDS, task.name)

    @property
    def steps(self) -> int:
        """Steps of all parameters."""
        return steps_of_epochs(self.task, self.task.train_rows or self._kinds.rows, self.length)

    def probe(self) -> Spec:
        """The run that shows whether the length is enough."""
        return self._spec(ALL, base_rate(self.task), TRIAL_SEED, "length")

    def trials(self, rows: Sequence[str]) -> list[Spec]:
        """The grid of each row, rate by rate."""
        grids = [[self._trial(name, rate) for rate in grid(self.task, CONTENDERS[name])] for name in rows]
        return [spec for turn in zip(*grids, strict=True) for spec in turn]

    def more_trials(self, rows: Sequence[str]) -> list[Spec]:
        """One more rate for each row whose best one is at an edge of the grid."""
        beyond = {name: one_more(grid(self.task, CONTENDERS[name]), self._scores(name)) for name in rows}
        return [self._trial(name, rate) for name, rate in beyond.items() if rate is not None]

    def finals(self, rows: Sequence[str], seed: int) -> list[Spec]:
        """Rows at their chosen rates."""
        return [self._spec(name, self._rate(name), seed, "final") for name in rows]

    def lower(self, rows: Sequence[str], seed: int) -> list[Spec]:
        """Rows below their chosen rates: a rate that is best in a short trial may be too high for the whole run."""
        return [self._spec(name, self._rate(name) * factor, seed, "final") for name in rows for factor in LOWER]

    def in_time_of(self, rows: Sequence[str], seed: int) -> list[Spec]:
        """All parameters, in the seconds of each row."""
        return [self._spec(ALL, self._rate(ALL), seed, "final", name) for name in rows]

    def planned(self, spec: Spec) -> Plan:
        """See `ResumableRuns`."""
        steps = max(1, round(TRIAL_STEPS * self.steps)) if spec.role == "trial" else self.steps
        if is_full(self.task.name):
            return Plan(self._measured_share(spec) if spec.time_of else steps, {}, 0.0, 0.0)
        planner = Planner(CONTENDERS[spec.method], self._kinds)
        if spec.time_of:
            other = Planner(CONTENDERS[spec.time_of], self._kinds)
            return planner.plan(other.charge(other.kinds(steps)))
        kinds = planner.kinds(steps)
        return Plan(steps, kinds, planner.charge(kinds), planner.charge(kinds))

    def work(self, spec: Spec, plan: Plan) -> tuple[Any, ...]:
        """See `ResumableRuns`."""
        return run, spec, plan, self._folder

    def completed(self, spec: Spec, plan: Plan, result: Result) -> Result:
        """A result with its reference seconds, which are wall seconds at the size of the paper."""
        if is_full(self.task.name):
            return {**result, "reference_seconds": result["wall_seconds"]}
        planner = Planner(CONTENDERS[spec.method], self._kinds)
        return {**result, "reference_seconds": planner.charge(result["kinds"])}

    def core_seconds(self, spec: Spec) -> float:
        """Reference seconds of a run, and an estimate of the seconds of its scoring."""
        (kind,) = self._kinds.kinds(ALL)
        row = FORWARD * self._kinds.charge(ALL, kind).seconds / self.task.batch_size
        scored = {"trial": 1, "length": POINTS, "final": 2 * POINTS + 1}[spec.role] * 1000
        return self.planned(spec).seconds + row * scored

    def _measured_share(self, spec: Spec) -> int:
        """Steps of all parameters in the wall seconds that a row took with the same seed."""
        taken = {name: self._seconds(name, spec.seed) for name in (ALL, spec.time_of)}
        return max(1, round(self.steps * taken[spec.time_of] / taken[ALL]))

    def _seconds(self, name: str, seed: int) -> float:
        found = self.known(self._spec(name, self._rate(name), seed, "final"))
        if found is None:
            raise KeyError(f"{name!r} was not run with seed {seed}, so that its seconds are not known.")
        return float(found["wall_seconds"])

    def _spec(self, method: str, rate: float, seed: int, role: str, time_of: str = "") -> Spec:
        return Spec(self.task.name, self.length, method, time_of, rate, seed, role)

    def _trial(self, name: str, rate: float) -> Spec:
        return self._spec(name, rate, TRIAL_SEED, "trial")

    def _scores(self, name: str) -> dict[float, float]:
        return scores_of(self._file.runs, name)

    def _rate(self, name: str) -> float:
        """The chosen rate; the middle one if there was no trial, as for a plan."""
        scores = self._scores(name)
        return best_rate(scores) if scores else base_rate(self.task) * CONTENDERS[name].setting.rate_scale
