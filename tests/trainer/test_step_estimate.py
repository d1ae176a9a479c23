"""Seconds per step from steps of each kind, and the number of steps that fit."""

from __future__ import annotations

import json

import pytest

from hf_multirate.trainer.step_estimate import ENOUGH, StepEstimate, fitting_steps


FULL, MIDDLE, FAST = (0, 1, 2), (0, 1), (0,)
KINDS = {FULL: 1, MIDDLE: 1, FAST: 2}


def estimate(**steps: list[float]) -> StepEstimate:
    made = StepEstimate(KINDS)
    for kind, seconds in {FULL: steps.get("full"), MIDDLE: steps.get("middle"), FAST: steps.get("fast")}.items():
        for value in seconds or []:
            made.add(kind, value)
    return made


def test_the_mean_is_that_of_a_cycle_without_first_steps() -> None:
    made = estimate(full=[9.0, 4.0], middle=[9.0, 2.0, 4.0], fast=[9.0, 1.0])
    assert made.mean() == (4.0 + 3.0 + 2 * 1.0) / 4
    assert made.full() == 4.0
    assert made.number == 7


def test_an_only_step_counts() -> None:
    assert estimate(full=[4.0], middle=[3.0], fast=[1.0]).mean() == (4.0 + 3.0 + 2.0) / 4


def test_a_kind_without_a_step_takes_the_time_of_the_most_similar_one() -> None:
    assert estimate(full=[4.0], fast=[1.0]).mean_of(MIDDLE) == 4.0  # the larger one of two
    assert estimate(full=[4.0]).mean() == 4.0
    assert estimate(middle=[2.0], full=[4.0]).mean_of(FAST) == 2.0


def test_complete_with_enough_steps_of_each_kind() -> None:
    made = estimate(full=[1.0] * ENOUGH, middle=[1.0] * ENOUGH, fast=[1.0] * (ENOUGH - 1))
    assert not made.complete
    made.add(FAST, 1.0)
    assert made.complete


def test_state_survives_json() -> None:
    made = estimate(full=[9.0, 4.0], fast=[1.0])
    made.add((), 7.0)
    again = StepEstimate(KINDS, json.loads(json.dumps(made.state())))
    assert again.state() == made.state()
    assert (again.mean(), again.mean_of(())) == (made.mean(), 7.0)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(100.0, 60), (101.1, 61), (100.9, 60), (0.0, 11), (-50.0, 11), (2.0, 11)]
)
def test_the_number_closest_to_the_time(seconds: float, steps: int) -> None:
    assert fitting_steps(10, seconds, lambda number: 2.0 * (number - 10), 2.0) == steps


def test_evaluations_take_their_part() -> None:
    def cost(number: int) -> float:
        return 1.0 * number + 10.0 * (number // 50)

    assert fitting_steps(0, 220.0, cost, 1.0) == 190  # and three evaluations
