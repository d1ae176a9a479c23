"""Number of evaluations and savings to come, compared with a loop over the callback of Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import DefaultFlowCallback, TrainerControl, TrainerState

from hf_multirate.trainer.outside_steps import SAVING_SPEED, OutsideSteps, rows_of
from tests.support.runs import arguments


EPOCH = 6


def outside(folder: Path, **settings: Any) -> OutsideSteps:
    return OutsideSteps(arguments(folder, **settings), EPOCH, rows_per_step=4, eval_rows=24, model=nn.Linear(3, 1))


def counted(purpose: str, found: OutsideSteps, step: int, steps: int) -> int:
    state = TrainerState(max_steps=steps)
    state.compute_steps(found.args, steps)
    flow, number = DefaultFlowCallback(), 0
    for state.global_step in range(1, steps + 1):
        control = TrainerControl()
        flow.on_step_end(found.args, state, control)
        if state.global_step % EPOCH == 0 or state.global_step == steps:
            state.epoch = state.global_step / EPOCH
            flow.on_epoch_end(found.args, state, control)
        happens = control.should_evaluate if purpose == "evaluation" else control.should_save
        number += happens and state.global_step > step
    return number


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
@pytest.mark.parametrize("every", [1, 5, 7, 0.25])
@pytest.mark.parametrize(("step", "steps"), [(0, 35), (5, 35), (6, 36), (7, 37), (34, 35), (20, 41)])
@pytest.mark.parametrize("delay", [0, 2, 4.5, 6.2, 15, 100])
def test_as_many_as_the_callback_asks_for(
    strategy: str, every: float, step: int, steps: int, delay: float, tmp_path: Path
) -> None:
    settings = {"eval_strategy": strategy, "eval_steps": every, "save_strategy": strategy, "save_steps": every}
    settings["eval_delay"] = delay
    found = outside(tmp_path, **settings)
    for purpose in ("evaluation", "saving"):
        assert found.number(purpose, step, steps) == counted(purpose, found, step, steps), purpose


def test_the_best_checkpoints_are_at_most_the_evaluations(tmp_path: Path) -> None:
    found = outside(tmp_path, eval_strategy="steps", eval_steps=5, save_strategy="best", metric_for_best_model="loss")
    assert found.number("saving", 3, 35) == found.number("evaluation", 3, 35) == 7


def test_guesses_before_the_first_one(tmp_path: Path) -> None:
    found = outside(tmp_path)
    assert found.guess("evaluation", 0.5) == pytest.approx(0.5 / 3 * 24 / 4)
    assert found.guess("saving", 0.5) == pytest.approx(4 * 4 * 3 / SAVING_SPEED)
    assert rows_of(None) == rows_of(iter([1])) == 0
    assert rows_of({"one": [1, 2], "other": [3]}) == 3
