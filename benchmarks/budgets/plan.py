"""From a budget to a number of steps.

A budget is a share of the reference seconds of the baseline's one epoch (``short``) or three (``long``). A contender
gets the number of steps whose charge comes closest, and takes its learning-rate schedule to the end within them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.accuracy.tasks import Task
from benchmarks.budgets.build import IN_STAGE, cached_kind, kind_of_groups, staged_kinds
from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.kinds import BASELINE, HEAD_START, KindsFile, head_start_name
from benchmarks.budgets.tasks import TASKS
from benchmarks.budgets.vcas_control import BATCHES, PROBE
from hf_multirate.config.schedule import Schedule


BUDGETS = (0.25, 0.4, 0.6, 0.8, 1.0)

MOST_STEPS = 1 << 20

FULL_SHARE = {"share 1": 1.0}
"""Kinds that are assumed for a contender whose kinds are not known before a run."""


@dataclass(frozen=True)
class Plan:
    """A planned run.

    Attributes:
        steps: Steps of the optimizer.
        kinds: Number of steps of each kind, head start and probes included.
        seconds: Their charge in reference seconds.
        budget: The seconds that were wanted.
    """

    steps: int
    kinds: dict[str, int]
    seconds: float
    budget: float

    def require(self, method: str, taken: Mapping[str, int]) -> None:
        """Check the steps that a run took.

        Raises:
            RuntimeError: they are not the planned ones.
        """
        if taken != self.kinds:
            raise RuntimeError(
                f"{method!r} took the kinds of steps {taken}, but {self.kinds} were planned and would be charged. The "
                "plan and the schedule of the contender differ: this is an error of the benchmark."
            )


def steps_of_epochs(task: Task, rows: int, length: str) -> int:
    """Steps of the baseline's whole run."""
    return dict(task.epochs)[length] * steps_of_one_epoch(task, rows)


def steps_of_one_epoch(task: Task, rows: int) -> int:
    """Steps in which each row is seen once."""
    return -(-rows // task.batch_size)


def budget_seconds(file: KindsFile, task: Task, rows: int, length: str, share: float) -> float:
    """A budget in reference seconds."""
    (kind,) = file.kinds(BASELINE)
    return share * steps_of_epochs(task, rows, length) * file.charge(BASELINE, kind).seconds


class Planner:
    """Plans the runs of one contender.

    Args:
        contender: The contender.
        file: The reference seconds of the task.
        mix: Share of the steps that each kind had in an earlier run, for a contender whose kinds depend on the run.
    """

    def __init__(self, contender: Contender, file: KindsFile, mix: Mapping[str, float] | None = None) -> None:
        self._contender, self._file = contender, file
        self._mix = mix or FULL_SHARE
        self._seconds: dict[str, float] = {}
        config = contender.config
        if contender.setting.parts:
            return
        self._names, periods = file.groups(contender.cost)
        self._schedule = Schedule(periods, config.turns, config.turns_seed)

    def kinds(self, steps: int) -> dict[str, int]:
        """Number of steps of each kind in a run of ``steps`` steps. A head start is one of them."""
        found = Counter({HEAD_START: 1} if self._contender.head_start else {})
        if self._contender.setting.kind == "vcas":
            return {**found, **self._mixed(steps)}
        if self._contender.setting.kind == "dropbp":
            (kind,) = self._file.kinds(self._contender.cost)
            return {**found, kind: steps}
        if self._contender.setting.parts:
            found.update(staged_kinds(self._contender, steps))
            return dict(found)
        live = (kind_of_groups(self._names, self._schedule.live(step)) for step in range(steps))
        if self._contender.cached:
            # The cache is attached at the first step, so the rows of a head start are not in it.
            epoch = steps_of_one_epoch(TASKS[self._file.task], self._file.rows)
            live = (cached_kind(groups, kept=step >= epoch) for step, groups in enumerate(live))
        found.update(live)
        return dict(found)

    def _mixed(self, steps: int) -> dict[str, int]:
        frequency = self._contender.setting.build["frequency"]
        probes = len([step for step in range(frequency, steps, frequency) if step >= BATCHES])
        rest, found = steps, {}
        for kind, share in sorted(self._mix.items(), key=lambda item: item[1]):
            found[kind] = min(rest, round(share * steps))
            rest -= found[kind]
        found[max(self._mix, key=lambda kind: self._mix[kind])] += rest
        return {**found, **({PROBE: probes} if probes else {})}

    def charge(self, kinds: Mapping[str, int]) -> float:
        """Reference seconds of a run with these kinds of steps.

        Raises:
            KeyError: a kind was not timed.
        """
        return sum(number * self._seconds_of(kind) for kind, number in kinds.items())

    def _seconds_of(self, kind: str) -> float:
        if kind not in self._seconds:
            contender = self._contender
            setting, of_setting = head_start_name(contender) if kind == HEAD_START else contender.cost, kind
            if contender.setting.parts and kind != HEAD_START:
                setting, of_setting = kind.split(IN_STAGE)
            self._seconds[kind] = self._file.charge(setting, of_setting).seconds
        return self._seconds[kind]

    def plan(self, budget: float) -> Plan:
        """The number of steps, at least 1, whose charge comes closest to ``budget`` seconds."""
        low, high = 1, 2
        while self._cost(high) < budget and high < MOST_STEPS:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._cost(middle) < budget else (low, middle)
        steps = min((low, high), key=lambda steps: (abs(self._cost(steps) - budget), steps))
        kinds = self.kinds(steps)
        return Plan(steps, kinds, self.charge(kinds), budget)

    def _cost(self, steps: int) -> float:
        return self.charge(self.kinds(steps))


def mix_of(kinds: Mapping[str, int]) -> dict[str, float]:
    """Share of each kind of the steps of a run, without head start and probes."""
    steps = {kind: number for kind, number in kinds.items() if kind not in (HEAD_START, PROBE)}
    return {kind: number / sum(steps.values()) for kind, number in steps.items()}
