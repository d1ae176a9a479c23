"""Seconds of full and fast steps, and the speed-up that follows."""

from __future__ import annotations

from copy import deepcopy
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD

from hf_multirate import Multirate, MultirateConfig
from hf_multirate.controller.step_span import gpu_of
from hf_multirate.controller.step_timer import StepTimer


def test_means_leave_out_the_first_step_of_a_kind() -> None:
    times = iter([0, 9, 10, 16, 20, 28, 30, 32, 40, 42, 54])
    timer = StepTimer(2.5, clock=lambda: float(next(times)))
    for full in (True, True, False, False, False):
        timer.start()
        timer.stop(full=full)
    summary = timer.summary()
    assert (summary["seconds_full_step"], summary["seconds_fast_step"]) == (6.0, 2.0)
    assert (summary["full_steps"], summary["fast_steps"], summary["speedup_predicted"]) == (2, 3, 2.5)
    assert summary["speedup_of_steps"] == pytest.approx(5 * 6 / (2 * 6 + 3 * 2))
    assert summary["speedup"] == pytest.approx((54 + 3 * (6 - 2)) / 54)


def test_without_steps_there_is_no_speedup() -> None:
    summary = StepTimer().summary()
    assert summary["speedup_of_steps"] is None
    assert summary["speedup"] is None


def test_the_clock_of_a_run_stops_when_the_controller_is_detached() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("^1", 2)).attach(model, optimizer) as multirate:
        for step in range(4):
            multirate.begin_step(step)
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    first = multirate.timing.elapsed
    assert first > 0
    assert multirate.timing.elapsed == first


class MadeUpSpan:
    """The time of a step on a device that has ended with it once it was allowed to."""

    made: ClassVar[list[MadeUpSpan]] = []

    def __init__(self) -> None:
        self.ended, self.reached = False, False
        self.made.append(self)

    def end(self) -> None:
        self.ended = True

    def seconds(self, *, wait: bool) -> float | None:
        assert self.ended
        self.reached = self.reached or wait
        return float(len(self.made[: self.made.index(self) + 1])) if self.reached else None


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> list[MadeUpSpan]:
    monkeypatch.setattr(MadeUpSpan, "made", [])
    return MadeUpSpan.made


def test_steps_on_a_device_count_once_they_have_ended_there(spans: list[MadeUpSpan]) -> None:
    timer = StepTimer(span=MadeUpSpan)
    for full in (True, False, False):
        timer.start()
        timer.stop(full=full)
    assert [timer.counted(full=full) for full in (True, False)] == [0, 0]
    spans[1].reached = True  # steps end in their order
    assert timer.counted(full=False) == 0
    spans[0].reached = True
    assert [timer.counted(full=full) for full in (True, False)] == [1, 1]
    assert timer.mean(full=True) == 1.0
    assert timer.in_steps == 3.0
    assert list(timer.seconds) == [1.0, 2.0, 3.0], "a record waits for the device"
    assert list(timer.full) == [1, 0, 0]


def test_a_step_that_was_begun_again_is_timed_from_there(spans: list[MadeUpSpan]) -> None:
    timer = StepTimer(span=MadeUpSpan)
    timer.start()
    timer.start()  # a gradient scaler has skipped the first
    timer.stop(full=True)
    timer.finish()
    assert [span.ended for span in spans] == [False, True]
    assert list(timer.seconds) == [2.0]


def test_copies_of_a_timer_leave_out_the_step_that_runs(spans: list[MadeUpSpan]) -> None:
    timer = StepTimer(span=MadeUpSpan)
    for _ in range(2):
        timer.start()
        timer.stop(full=True)
    spans[0].reached = True
    assert list(deepcopy(timer).seconds) == [1.0]
    assert list(timer.seconds) == [1.0, 2.0]


def test_a_summary_counts_all_steps(spans: list[MadeUpSpan]) -> None:
    timer = StepTimer(span=MadeUpSpan)
    for full in (True, False):
        timer.start()
        timer.stop(full=full)
    summary = timer.summary()
    assert (summary["full_steps"], summary["fast_steps"]) == (1, 1)
    assert summary["speedup_of_steps"] == pytest.approx(2 * 1.0 / (1.0 + 2.0))


class SecondTimeSpan(MadeUpSpan):
    """Has ended when it is read for the second time after its step."""

    def seconds(self, *, wait: bool) -> float | None:
        self.reads = vars(self).get("reads", 0) + 1
        return 1.0 if self.reads > 2 else None


def test_a_step_that_ends_meanwhile_is_not_counted_without_its_cost() -> None:
    timer = StepTimer(span=SecondTimeSpan)
    timer._add(1.0, full=True, predicted_cost=1.0)
    timer.start()
    timer.stop(full=False, predicted_cost=0.5)
    assert timer.predicted_so_far == 1.0
    assert timer.predicted_so_far == 2 / 1.5


def test_frozen_groups_are_restored_although_the_device_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timer: StepTimer) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    multirate = Multirate(MultirateConfig.two_rate("^1", "never")).attach(model, SGD(model.parameters(), lr=0.1))
    assert not model[0].weight.requires_grad
    monkeypatch.setattr(StepTimer, "finish", fail)
    with pytest.raises(RuntimeError, match="device-side"):
        multirate.detach()
    assert model[0].weight.requires_grad


def test_a_model_on_a_gpu_is_timed_there() -> None:
    model = nn.Linear(1, 1)
    assert gpu_of(model) is None
    assert gpu_of(nn.ReLU()) is None
    with FakeTensorMode():
        assert gpu_of(nn.ParameterList([torch.empty(1, device="cuda")])) == torch.device("cuda", 0)
