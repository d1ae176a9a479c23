"""A timed run without a Trainer: a loop with a clock that the test sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from hf_multirate.config.schedule import Schedule
from hf_multirate.trainer.spent_time import NOTHING, Reading, SpentTime
from hf_multirate.trainer.timed_run import MEASURED_STEPS, TimedRun
from hf_multirate.trainer.train_time import TrainTimePlan
from tests.support.clock import Clock


STANDARD, LADDER = Schedule((1,)), Schedule((1, 2, 4), "drawn")
Cost = Callable[[int, int], float]
"""Step, number of live groups -> seconds."""


@dataclass
class Outside:
    """An evaluation of ``seconds`` after every ``every`` steps, guessed as ``guessed``."""

    every: int = 10**9
    seconds: float = 0.0
    guessed: float = 0.0

    def number(self, purpose: str, step: int, steps: int) -> int:
        return steps // self.every - step // self.every if purpose == "evaluation" else 0

    def guess(self, purpose: str, full_step: float) -> float:
        del purpose, full_step
        return self.guessed


@dataclass
class Loop:
    """The order in which Trainer does things."""

    cost: Cost
    seconds: float = 600.0
    counts: str = "everything"
    schedule: Schedule = STANDARD
    outside: Outside = field(default_factory=Outside)
    clock: Clock = field(default_factory=Clock)
    slowest: Callable[[Reading], Reading] = lambda reading: reading
    state: dict[str, Any] = field(default_factory=dict)
    repeated: TrainTimePlan | None = None

    def run(self, step: int = 0, until: int | None = None) -> TimedRun:
        before = Reading(**self.state["spent"]) if self.state else NOTHING
        saved = TrainTimePlan.from_dict(self.state["plan"]) if self.state else None
        plan = self.repeated or saved or TrainTimePlan(self.seconds, self.counts, {})
        run = TimedRun(
            plan,
            SpentTime(self.clock, before, self.slowest),
            self.schedule.kinds,
            self.outside,
            repeats=self.repeated is not None,
            before=self.state,
        )
        steps = plan.total(step)
        while (steps is None or step < steps) and (until is None or step < until):
            kind = self.schedule.live(step)
            self.clock.now += self.cost(step, len(kind))
            run.measure(step + 1, kind)
            plan.progress(step + 1)  # the learning rate of the next step
            step += 1
            steps = run.settle(step) or steps
            if step % self.outside.every == 0:
                with run.spent.spent_on("evaluation"):
                    self.clock.now += self.outside.seconds
        self.state = json.loads(json.dumps(run.state()))
        return run


def constant(step: int, live: int) -> float:
    del step, live
    return 0.5


def by_kind(step: int, live: int) -> float:
    """The first step is slow. Later steps cost more with more live groups."""
    return 0.2 + 0.3 * live + (5.0 if step == 0 else 0.0)


def test_the_number_of_steps_is_settled_once() -> None:
    run = Loop(constant).run()
    assert run.plan.totals == [(24, 1200)]  # 2 % of the time, and not only 20 steps
    assert run.used == 600.0
    assert run.plan.measured == pytest.approx([step / 1200 for step in range(25)])


def test_each_kind_counts_as_often_as_in_a_cycle() -> None:
    run = Loop(by_kind, schedule=LADDER).run()
    assert len(run.plan.totals) == 1
    assert run.plan.totals[0][0] >= MEASURED_STEPS
    assert run.used == pytest.approx(600.0, abs=1.0)


@pytest.mark.parametrize("factor", [0.4, 0.9, 1.3, 2.0])
def test_one_correction_for_another_speed(factor: float) -> None:
    def changing(step: int, live: int) -> float:
        return by_kind(step, live) * (factor if step >= 60 else 1.0)

    run = Loop(changing, schedule=LADDER).run()
    assert len(run.plan.totals) == 2
    assert run.used == pytest.approx(600.0, rel=0.01)
    step, steps = run.plan.totals[1]
    assert run.plan.progress(steps) == 1.0
    progress = [run.plan.progress(at) for at in range(steps + 1)]
    before, after = progress[step] - progress[step - 1], progress[step + 1] - progress[step]
    assert (before > after) == (factor < 1)
    assert np.diff(progress[step:]) == pytest.approx(after)


def test_no_correction_within_the_tolerance() -> None:
    run = Loop(lambda step, _: 0.5 * (1.009 if step > 100 else 1.0)).run()
    assert run.plan.totals == [(24, 1200)]
    assert run.used == pytest.approx(600.0, rel=0.01)
    corrected = Loop(lambda step, _: 0.5 * (1.03 if step > 100 else 1.0)).run()
    assert len(corrected.plan.totals) == 2


def test_later_corrections_of_a_machine_that_changes_again() -> None:
    def twice(step: int, live: int) -> float:
        return constant(step, live) * (1.0 if step < 200 else 1.5 if step < 500 else 3.0)

    run = Loop(twice).run()
    assert [after for after, _ in run.plan.totals[1:]] == [475, 585, 609]
    assert run.used == pytest.approx(600.0, rel=0.02)
    progress = [run.plan.progress(step) for step in range(run.plan.totals[-1][1] + 1)]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


def test_no_correction_after_the_last_share() -> None:
    run = Loop(lambda step, _: 0.5 if step < 1170 else 2.0).run()
    assert run.plan.totals == [(24, 1200)]
    assert run.used == pytest.approx(645.0)


def test_half_time_is_that_of_the_time_or_of_the_steps() -> None:
    slower = Loop(lambda step, _: 0.5 if step < 30 else 2.0).run()
    assert slower.plan.totals[1][0] == pytest.approx(30 + (300 - 15) / 2, abs=1200 // 100)
    faster = Loop(lambda step, _: 0.5 if step < 30 else 0.1).run()
    assert faster.plan.totals[1][0] == 600
    assert slower.used == pytest.approx(600.0, rel=0.01)
    assert faster.used == pytest.approx(600.0, rel=0.01)


@pytest.mark.parametrize("guessed", [0.0, 4.0, 30.0])
def test_evaluations_are_guessed_and_then_measured(guessed: float) -> None:
    outside = Outside(every=100, seconds=10.0, guessed=guessed)
    run = Loop(constant, outside=outside).run()
    assert run.used == pytest.approx(600.0, rel=0.015)
    assert run.spent.read().training == pytest.approx(600.0 - run.spent.read().evaluation)


def test_evaluations_that_do_not_count() -> None:
    run = Loop(constant, counts="training", outside=Outside(every=100, seconds=10.0)).run()
    assert run.plan.totals == [(24, 1200)]
    assert run.used == 600.0
    assert run.spent.read().elapsed == 720.0


def test_slow_steps_leave_little_to_measure() -> None:
    run = Loop(lambda step, _: 30.0 if step == 0 else 10.0).run()
    assert run.plan.totals[0] == (6, 58)
    assert run.used == 600.0


@pytest.mark.parametrize("first", [310.0, 500.0])
def test_a_long_start_does_not_make_a_time_too_short(first: float) -> None:
    run = Loop(lambda step, _: first if step == 0 else 5.0).run()
    assert run.plan.totals[0] == (2, 2 + (600 - int(first) - 5) // 5)
    assert run.used == 600.0


@pytest.mark.parametrize(("first", "later"), [(100.0, 100.0), (400.0, 200.0), (700.0, 700.0)])
def test_a_time_that_is_too_short(first: float, later: float) -> None:
    with pytest.raises(ValueError, match=r"is 10 min, which is too short: .* at least 10 are needed. Give .* or more"):
        Loop(lambda step, _: first if step == 0 else later).run()


def test_the_time_that_is_named_is_enough() -> None:
    with pytest.raises(ValueError, match="Give 17 min 30 s or more"):
        Loop(lambda *_: 100.0).run()
    assert Loop(lambda *_: 100.0, seconds=1050.0).run().plan.totals[-1][1] in (10, 11)


@pytest.mark.parametrize("ends", [[5], [24], [25], [100], [599, 600], [640], [3, 9, 300]])
def test_a_resumed_run_is_the_whole_one(ends: list[int]) -> None:
    def changing(step: int, live: int) -> float:
        return by_kind(step, live) * (1.4 if step >= 200 else 1.0)

    whole = Loop(changing, schedule=LADDER).run()
    loop, step = Loop(changing, schedule=LADDER), 0
    for end in ends:
        loop.run(step, end)
        loop.clock.now, step = 7.0, end  # another clock
    run = loop.run(step)
    assert run.used == pytest.approx(600.0, rel=0.01)
    if ends[0] < MEASURED_STEPS:  # the first step after each restart is not measured
        assert len(run.plan.totals) == 2
    else:
        assert run.plan == replace(whole.plan, used=run.plan.used)


def test_a_slow_restart_is_no_slow_machine() -> None:
    loop = Loop(constant)
    loop.run(0, 300)
    loop.cost = lambda step, _: 20.5 if step == 300 else 0.5  # 20 s to skip the batches before
    run = loop.run(300)
    assert run.plan.totals == [(24, 1200), (run.plan.totals[1][0], 1160)]
    assert run.used == 600.0


def test_a_repeated_run_reads_no_clock() -> None:
    def changing(step: int, live: int) -> float:
        return by_kind(step, live) * (1.4 if step >= 200 else 1.0)

    plan = Loop(changing, schedule=LADDER).run().plan
    again = Loop(lambda *_: 3.0, schedule=LADDER, repeated=TrainTimePlan.from_dict(plan.to_dict())).run()
    assert again.plan == plan
    assert not again.estimate.number


def test_the_slowest_process_decides() -> None:
    run = Loop(constant, slowest=lambda reading: replace(reading, elapsed=2 * reading.elapsed)).run()
    assert run.plan.totals == [(20, 600)]
    assert run.used == 300.0  # of this process
