"""The stopwatch of a timed run knows what the seconds were spent on."""

from __future__ import annotations

from dataclasses import replace

from hf_multirate.trainer.spent_time import NOTHING, Reading, SpentTime
from tests.support.clock import Clock


def test_purposes_are_apart() -> None:
    clock = Clock(100.0)
    spent = SpentTime(clock)
    clock.now += 2.0
    with spent.spent_on("evaluation"):
        clock.now += 3.0
        with spent.spent_on("evaluation"):  # of each of several evaluation sets
            clock.now += 1.0
        with spent.spent_on("saving"):
            clock.now += 1.0
        assert spent.read() == Reading(7.0, 5.0, 0.0, 0.0, 0.0)
    with spent.spent_on("saving"):
        clock.now += 0.5
    reading = spent.read()
    assert reading == Reading(7.5, 5.0, 0.5, 1.0, 1.0)
    assert reading.training == 2.0
    assert (reading.counted("everything"), reading.counted("training")) == (7.5, 2.0)
    assert (reading.mean("evaluation"), reading.mean("saving"), NOTHING.mean("saving")) == (5.0, 0.5, None)


def test_the_time_before_counts() -> None:
    clock = Clock(5.0)
    spent = SpentTime(clock, Reading(10.0, 4.0, 0.0, 2.0, 0.0))
    clock.now += 1.0
    with spent.spent_on("evaluation"):
        clock.now += 2.0
    assert spent.read() == Reading(13.0, 6.0, 0.0, 3.0, 0.0)
    assert spent.read().mean("evaluation") == 2.0


def test_an_activity_that_fails_ends() -> None:
    clock = Clock()
    spent = SpentTime(clock)
    try:
        with spent.spent_on("saving"):
            clock.now += 1.0
            raise OSError
    except OSError:
        clock.now += 1.0
    assert spent.read() == Reading(2.0, 0.0, 1.0, 0.0, 1.0)


def test_the_slowest_process_is_asked_for_only_then() -> None:
    spent = SpentTime(Clock(), slowest=lambda reading: replace(reading, elapsed=9.0))
    assert spent.read().elapsed == 0.0
    assert spent.read_slowest().elapsed == 9.0
