"""A run that ends after a given time: it times its first steps, settles the number of steps, and corrects it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, Protocol

from hf_multirate.config.durations import shown_seconds
from hf_multirate.trainer.spent_time import Reading, SpentTime
from hf_multirate.trainer.step_estimate import Kind, StepEstimate, fitting_steps
from hf_multirate.trainer.train_time import MIN_STEPS, TrainTimePlan


logger = logging.getLogger(__name__)

MEASURED_STEPS = 20
"""Number of steps that are timed, if each kind of step is among them often enough."""

LEAST_SHARE, LARGEST_SHARE, LAST_SHARE = 0.02, 0.1, 0.5
"""Shares of the time for measuring: at least; at most, with `FEW_STEPS`; and at most in any case."""

FEW_STEPS = 6

CORRECTIONS = tuple(1 - 0.5**i for i in range(1, 6))
"""Shares of the run at which the number of steps is corrected, each at half of the rest: a late change costs less."""

TOLERANCE = 0.01
"""Share of the time by which the end may be off without a correction."""

CHECKS = 100
"""Number of times that the clocks of all processes are compared in a run."""

WINDOW, MIN_WINDOW = 1 / 3, 10
"""Share of the steps so far, and smallest number of steps, over which the present speed is measured."""


class Outside(Protocol):
    """Evaluations and savings, as `hf_multirate.trainer.outside_steps.OutsideSteps` knows them."""

    def number(self, purpose: str, step: int, steps: int) -> int:
        """Number of them after ``step``, up to the end of a run of ``steps`` steps."""

    def guess(self, purpose: str, full_step: float) -> float:
        """Seconds of the first one, from the seconds of a full step."""


class Mark(NamedTuple):
    """A reading after the number of steps was settled.

    Attributes:
        step: Number of steps.
        training: Seconds of training.
        expected: Seconds that the steps since the first mark would take at the speed of the measured steps.
    """

    step: int
    training: float
    expected: float


class TimedRun:
    """Decides on the number of steps of one run.

    Args:
        plan: The plan, which the run extends. In a repeated run it is complete and nothing is measured.
        spent: The stopwatch of the run.
        kinds: Kind of step -> number of such steps in a cycle.
        outside: Evaluations and savings to come.
        repeats: Whether the run repeats a complete plan.
        before: A `state` of the run that is resumed.
    """

    def __init__(
        self,
        plan: TrainTimePlan,
        spent: SpentTime,
        kinds: Mapping[Kind, int],
        outside: Outside,
        *,
        repeats: bool = False,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        state = dict(before or {})
        self.plan, self.spent, self.repeats = plan, spent, repeats
        self.estimate = StepEstimate(kinds, state.get("estimate"))
        self._outside = outside
        self._marks = [Mark(*mark) for mark in state.get("marks", [])]
        self._expected = float(state.get("expected", 0.0))
        self.seconds_per_step = 0.0
        """Seconds of a step by which the number of steps was settled or corrected last."""
        self._corrections = int(state.get("corrections", 0))
        """Number of shares in `CORRECTIONS` that are over."""
        self._start = float(state.get("start", 0.0))
        """Seconds that count before the first step, such as those of a head start."""
        self._resumed = bool(state)
        self._last = spent.before.training
        self._reading: Reading | None = None

    @property
    def used(self) -> float:
        """Seconds that count, until now."""
        return self.spent.read().counted(self.plan.counts)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as JSON values."""
        return {
            "plan": self.plan.to_dict(),
            "spent": asdict(self.spent.read()),
            "estimate": self.estimate.state(),
            "marks": [list(mark) for mark in self._marks],
            "expected": self._expected,
            "corrections": self._corrections,
            "start": self._start,
        }

    def begin_steps(self) -> None:
        """Read the clock before the first step.

        A head start or an evaluation before it takes a part of the time. The schedule has the rest: otherwise the
        first step would leave out the warm-up.
        """
        if self.repeats or self._resumed or len(self.plan.measured) > 1:
            return
        reading = self.spent.read_slowest()
        self._start, self._last = reading.counted(self.plan.counts), reading.training

    def measure(self, step: int, kind: Kind) -> None:
        """Read the clock after the optimizer has taken the step that makes ``step`` steps.

        Steps are measured until their number is settled, and progress follows the time.
        """
        self._reading = None
        if self.repeats:
            return
        measuring = not self.plan.totals
        if not measuring and self.estimate.number:
            self._expected += self.estimate.mean_of(kind)
        if not measuring and not self._resumed and not self._is_check(step):
            return
        reading = self._reading = self.spent.read_slowest()
        seconds, self._last = reading.training - self._last, reading.training
        if self._resumed:  # the first step after a restart skips batches and starts up
            self._leave_out(seconds)
        elif measuring:
            self.estimate.add(kind, max(seconds, 0.0))
        if measuring:
            left = self.plan.seconds - self._start
            share = min((reading.counted(self.plan.counts) - self._start) / left, 1.0) if left > 0.0 else 1.0
            self.plan.measured.append(max(share, self.plan.measured[-1]))

    def _leave_out(self, seconds: float) -> None:
        """Leave the start of a resumed run out of the speed: move earlier readings by the additional seconds."""
        extra = max(seconds - self.estimate.mean(), 0.0) if self.estimate.number else 0.0
        self._marks = [mark._replace(training=mark.training + extra) for mark in self._marks]
        self._resumed = False

    def settle(self, step: int) -> int | None:
        """Settle or correct the number of steps after ``step`` steps.

        Returns:
            The number of steps if it has changed.

        Raises:
            ValueError: the time is too short.
        """
        if self.repeats:
            return dict(self.plan.totals).get(step)
        if self._reading is None:
            return None
        if not self.plan.totals:
            return self._settle_first(step, self._reading) if self._measured_enough() else None
        return self._correct(step, self._reading)

    def _measured_enough(self) -> bool:
        share, number = self.plan.measured[-1], self.estimate.number
        if number >= MEASURED_STEPS and self.estimate.complete and share >= LEAST_SHARE:
            return True
        if share >= LAST_SHARE:
            return number > 1 or share >= 1.0  # the first step alone has the seconds of the start
        return share >= LARGEST_SHARE and number >= FEW_STEPS

    def _settle_first(self, step: int, reading: Reading) -> int:
        if not self.estimate.number:  # resumed in the last step of a time that is too short
            self.estimate.add((0,), reading.training / step)
        seconds = self.estimate.mean()
        steps = self._fitting(step, reading, seconds)
        if steps < MIN_STEPS:
            needed = shown_seconds(self._end(step, MIN_STEPS, reading, seconds) * 1.05)
            spent = shown_seconds(reading.counted(self.plan.counts) - self._start)
            taken = f"{step} step{'s' * (step > 1)} took {spent}"
            if self._start > LEAST_SHARE * self.plan.seconds:
                taken += f", after {shown_seconds(self._start)} before the first step"
            raise ValueError(
                f"multirate_train_time is {shown_seconds(self.plan.seconds)}, which is too short: {taken}, so "
                f"{steps} steps would fit, and at least {MIN_STEPS} are needed. Give {needed} or more, or make steps "
                "cheaper with a smaller batch."
            )
        self.plan.totals.append((step, steps))
        self._marks, self._expected, self.seconds_per_step = [Mark(step, reading.training, 0.0)], 0.0, seconds
        return steps

    def _fitting(self, step: int, reading: Reading, seconds: float) -> int:
        left = self.plan.seconds - reading.counted(self.plan.counts)
        return fitting_steps(step, left, lambda steps: self._cost(step, steps, reading, seconds), max(seconds, 1e-6))

    def _cost(self, step: int, steps: int, reading: Reading, seconds: float) -> float:
        """Seconds from ``step`` to the end of a run of ``steps`` steps, each of ``seconds``."""
        cost = (steps - step) * seconds
        if self.plan.counts == "training":
            return cost
        for purpose in ("evaluation", "saving"):
            number = self._outside.number(purpose, step, steps)
            if number:
                mean = reading.mean(purpose)
                cost += number * (self._outside.guess(purpose, self.estimate.full()) if mean is None else mean)
        return cost

    def _end(self, step: int, steps: int, reading: Reading, seconds: float) -> float:
        return reading.counted(self.plan.counts) + self._cost(step, steps, reading, seconds)

    def _is_check(self, step: int) -> bool:
        """Whether the clocks are compared after ``step`` steps: depends on the step only, as in all processes."""
        if self._corrections == len(CORRECTIONS):
            return False
        start, steps = self.plan.totals[0]
        return (step - start) % max(1, (steps - start) // CHECKS) == 0 or step == self._next_correction()

    def _next_correction(self) -> int:
        """Number of steps at which the next correction is due, if its share of the time is not over before."""
        return math.ceil(self.plan.totals[-1][1] * CORRECTIONS[self._corrections])

    def _correct(self, step: int, reading: Reading) -> int | None:
        """At one of `CORRECTIONS`, correct the number if the end would be off by more than `TOLERANCE`."""
        steps = self.plan.totals[-1][1]
        if self._corrections == len(CORRECTIONS):
            return None
        self._marks.append(Mark(step, reading.training, self._expected))
        used = reading.counted(self.plan.counts) / self.plan.seconds
        if used < CORRECTIONS[self._corrections] and step < self._next_correction():
            return None
        self._corrections += 1
        while self._corrections < len(CORRECTIONS) and used >= CORRECTIONS[self._corrections]:
            self._corrections += 1
        seconds = self.seconds_per_step = self._present_seconds()
        if step >= steps or abs(self._end(step, steps, reading, seconds) / self.plan.seconds - 1.0) <= TOLERANCE:
            return None
        corrected = self._fitting(step, reading, seconds)
        if corrected == steps:
            return None
        self.plan.totals.append((step, corrected))
        return corrected

    def _present_seconds(self) -> float:
        """Mean seconds of a step at the present speed, that of the last third of the steps since `_settle_first`.

        The speed is the time of these steps over that of the same kinds of steps at the start. Steps before the last
        correction do not count.
        """
        last, first = self._marks[-1], self._marks[0]
        start = max(first.step + (last.step - first.step) * (1.0 - WINDOW), self.plan.totals[-1][0])
        earlier = [mark for mark in self._marks if mark.step <= start and last.step - mark.step >= MIN_WINDOW]
        since = earlier[-1] if earlier else first
        expected = last.expected - since.expected
        slower = (last.training - since.training) / expected if expected > 0.0 else 1.0
        return max(slower * self.estimate.mean(), 1e-6)
