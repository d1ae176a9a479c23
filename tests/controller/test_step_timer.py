"""Seconds of full and fast steps, and the speed-up that follows."""

from __future__ import annotations

import pytest

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
