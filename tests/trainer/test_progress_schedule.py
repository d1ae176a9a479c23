"""Schedules of transformers follow progress, and those that cannot are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from transformers import SchedulerType, get_scheduler

from hf_multirate.trainer.progress_schedule import (
    BY_STEPS,
    PROVISIONAL_STEPS,
    WITHOUT_END,
    WITHOUT_FACTOR,
    check_schedule,
    follow_progress,
    schedule_kwargs,
)
from tests.support.runs import FIVE, arguments


STEPS = 40
WARMUP = "warmup_steps" if FIVE else "warmup_ratio"
KWARGS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0},
}
NAMES = [kind.value for kind in SchedulerType if kind.value not in (*BY_STEPS, *WITHOUT_FACTOR)]


def rates(name: str, steps: int, settings: dict[str, Any], *, by_progress: bool) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    progress = [0.0]
    scheduler = get_scheduler(name, optimizer, steps // 10, steps, settings)
    if by_progress:
        follow_progress(scheduler, lambda: progress[0])
    found = []
    for step in range(1, STEPS + 1):
        found.append(scheduler.get_last_lr()[0])
        progress[0] = step / STEPS
        optimizer.step()
        scheduler.step()
    return [*found, scheduler.get_last_lr()[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_takes_the_rates_of_a_run_with_that_many_steps(name: str, tmp_path: Path) -> None:
    settings = KWARGS.get(name, {})
    shares: dict[str, Any] = dict(settings)
    if name == "warmup_stable_decay":
        settings, shares = {"num_decay_steps": 10}, {"num_decay_steps": 0.25}
    args = arguments(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=shares)
    expected = rates(name, STEPS, settings, by_progress=False)
    followed = rates(name, PROVISIONAL_STEPS, schedule_kwargs(args), by_progress=True)
    if name == "cosine_warmup_with_min_lr":  # which is one step ahead: one of many
        assert followed[-1] == pytest.approx(0.1)
        assert followed[5:-1] == pytest.approx(expected[4:-2], abs=1e-6)
    else:
        assert followed == pytest.approx(expected, abs=1e-6)


def test_the_count_of_calls_does_not_matter() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("linear", optimizer, 0, PROVISIONAL_STEPS)
    follow_progress(scheduler, lambda: 0.25)
    saved = scheduler.state_dict()
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == [0.75]
    scheduler.load_state_dict(saved)
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.75]


def test_another_kind_of_schedule_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(
        ValueError, match="create_scheduler returned CosineAnnealingLR, but multirate_train_time needs"
    ):
        follow_progress(CosineAnnealingLR(optimizer, 10), lambda: 0.0)


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_which_schedules_have_an_end(name: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, lr_scheduler_type=name, eval_strategy="epoch")  # which some of them require
    if name in BY_STEPS:
        with pytest.raises(ValueError, match=f"lr_scheduler_type is '{name}', which is defined by a number of steps"):
            check_schedule(args)
    else:
        message = check_schedule(args)
        assert (message is not None) == (name in WITHOUT_END)
        assert message is None or f"lr_scheduler_type is {name!r}, which has no end" in message


def test_warm_up_has_to_be_a_share(tmp_path: Path) -> None:
    assert check_schedule(arguments(tmp_path, **{WARMUP: 0.1})) is None
    with pytest.raises(ValueError, match=r"warmup_steps is 100, but .* Give the warm-up as a share of the time"):
        check_schedule(arguments(tmp_path, warmup_steps=100))


@pytest.mark.parametrize("key", ["num_decay_steps", "num_stable_steps"])
def test_parts_of_a_schedule_have_to_be_shares(key: str, tmp_path: Path) -> None:
    args = arguments(tmp_path, lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={key: 50})
    with pytest.raises(ValueError, match=f"{key} in lr_scheduler_kwargs is 50, but .* Give a share of the time"):
        check_schedule(args)
    args.lr_scheduler_kwargs = {key: 0.25}
    assert schedule_kwargs(args) == {key: PROVISIONAL_STEPS / 4}
    assert args.lr_scheduler_kwargs == {key: 0.25}
