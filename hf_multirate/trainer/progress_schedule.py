"""Learning-rate schedules of transformers as functions of progress instead of steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, TrainingArguments


PROVISIONAL_STEPS = 10**9
"""Number of steps that Trainer gets for a timed run before the true number is known. Schedules are made for it."""

WITHOUT_END = ("constant", "constant_with_warmup", "reduce_lr_on_plateau", "greedy")
"""Schedules whose learning rate does not depend on the number of steps of the run."""

WITHOUT_FACTOR = ("reduce_lr_on_plateau", "greedy")
"""Schedules among them that react to measured values, and are no functions of the step."""

BY_STEPS = ("inverse_sqrt",)
"""Schedules that are defined by absolute numbers of steps."""

SHARES = ("num_decay_steps", "num_stable_steps")
"""Entries of ``lr_scheduler_kwargs`` that are numbers of steps."""

REMEDY = "Use lr_scheduler_type='linear', 'cosine' or another schedule with an end."


def check_schedule(args: TrainingArguments) -> str | None:
    """Check that the schedule of the arguments can follow the time.

    Returns:
        A message if the schedule has no end, else None.

    Raises:
        ValueError: the schedule, or its warm-up, is defined by a number of steps.
    """
    name = SchedulerType(args.lr_scheduler_type).value
    if name in BY_STEPS:
        raise ValueError(
            f"lr_scheduler_type is {name!r}, which is defined by a number of steps and has no end, so it cannot "
            f"follow multirate_train_time. {REMEDY}"
        )
    half, whole = (args.get_warmup_steps(PROVISIONAL_STEPS // part) for part in (2, 1))
    if half == whole != 0:
        raise ValueError(
            f"warmup_steps is {whole}, but with multirate_train_time the number of steps is not known before "
            "training. Give the warm-up as a share of the time: warmup_steps=0.1, or warmup_ratio=0.1 in transformers "
            "4.57."
        )
    schedule_kwargs(args)
    if name in WITHOUT_END:
        return (
            f"lr_scheduler_type is {name!r}, which has no end: multirate_train_time determines the length of the run "
            f"but not the learning rate. {REMEDY}"
        )
    return None


def schedule_kwargs(args: TrainingArguments) -> dict[str, Any]:
    """The ``lr_scheduler_kwargs`` for `PROVISIONAL_STEPS` steps, with shares as numbers of steps.

    Raises:
        ValueError: a number of steps is not given as a share.
    """
    settings = dict(args.lr_scheduler_kwargs or {})  # type: ignore[arg-type]  # may be a string only before checks
    for key in SHARES:
        value = settings.get(key)
        if value is None:
            continue
        if not 0 <= value < 1:
            raise ValueError(
                f"{key} in lr_scheduler_kwargs is {value!r}, but with multirate_train_time the number of steps is not "
                f"known before training. Give a share of the time, such as {{'{key}': 0.2}}."
            )
        settings[key] = value * PROVISIONAL_STEPS
    return settings


def follow_progress(scheduler: LRScheduler, progress: Callable[[], float]) -> None:
    """Let a schedule for `PROVISIONAL_STEPS` steps take its learning rate at ``progress()`` whenever it steps.

    Args:
        scheduler: The schedule, a `LambdaLR`.
        progress: Returns the progress of the next step, from 0 to 1.

    Raises:
        ValueError: ``scheduler`` is of another class.
    """
    if not isinstance(scheduler, LambdaLR):
        raise ValueError(
            f"create_scheduler returned {type(scheduler).__name__}, but multirate_train_time needs a schedule that is "
            "a function of the step: a LambdaLR, as transformers makes it for lr_scheduler_type."
        )
    scheduler.lr_lambdas = [
        partial(_at_progress, cast(Callable[[float], float], factor), progress) for factor in scheduler.lr_lambdas
    ]


def _at_progress(factor: Callable[[float], float], progress: Callable[[], float], count: int) -> float:
    """The factor of the learning rate at the present progress; the number of calls does not matter."""
    del count
    return factor(progress() * PROVISIONAL_STEPS)
