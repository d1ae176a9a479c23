"""Seconds of full and fast steps, and the speed-up that follows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from hf_multirate import Multirate, MultirateConfig
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
