"""The plan of a timed run in its set-up: check that a plan belongs to a run, and write it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import has_length

from hf_multirate.config.config import MultirateConfig
from hf_multirate.trainer.progress_schedule import PROVISIONAL_STEPS
from hf_multirate.trainer.spent_time import Reading
from hf_multirate.trainer.timed_callbacks import TrainTimeState
from hf_multirate.trainer.train_time import FILE, TrainTime, TrainTimePlan, differences


logger = logging.getLogger(__name__)


def setup_of(args: TrainingArguments, config: MultirateConfig, *, batch_size: int, data: Any) -> dict[str, Any]:
    """The parts of the set-up that a plan belongs to, as JSON values.

    Args:
        args: The arguments of the trainer.
        config: The rate groups.
        batch_size: Rows of a micro-batch in each process.
        data: The data set, with or without a length.
    """
    return {
        "processes": args.world_size,
        "batch size": batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "rows": len(data) if data is not None and has_length(data) else None,
        "lr_scheduler_type": SchedulerType(args.lr_scheduler_type).value,
        "warm-up": args.get_warmup_steps(PROVISIONAL_STEPS) / PROVISIONAL_STEPS,
        # The time is a field of the plan.
        "configuration": json.loads(replace(config, train_time=None).to_json()),
    }


def plan_for(time: TrainTime, setup: dict[str, Any]) -> TrainTimePlan:
    """The plan that ``time`` names, or a new one.

    Args:
        time: What the user asked for.
        setup: The present set-up, see `setup_of`.

    Raises:
        ValueError: the plan belongs to another set-up.
    """
    if time.plan is None:
        return TrainTimePlan(time.seconds, time.counts, setup)
    changed = differences(time.plan.setup, setup)
    if changed:
        raise ValueError(
            f"multirate_train_time_plan is {time.plan_path!r}, which belongs to another set-up: {changed}. Use the "
            "plan of a run with the present settings, or set multirate_train_time instead."
        )
    return time.plan


def saved_run(callbacks: Mapping[str, Any], plan: TrainTimePlan) -> dict[str, Any]:
    """The state of the run in the checkpoint that is resumed.

    Args:
        callbacks: States of callbacks that Trainer has loaded: class -> state.
        plan: The plan of the present run.

    Raises:
        ValueError: the checkpoint has no such state, or the state belongs to a run with another time.
    """
    saved = callbacks.get(TrainTimeState.__name__, {}).get("attributes", {}).get("saved", {})
    if not saved:
        raise ValueError(
            "the checkpoint was written without multirate_train_time, so it is unknown how much of the time is "
            "used. Resume with max_steps or num_train_epochs, or start a new run."
        )
    before = TrainTimePlan.from_dict(saved["plan"])
    asked = {"seconds": plan.seconds, "counts": plan.counts}
    changed = differences({"seconds": before.seconds, "counts": before.counts}, asked)
    if changed:
        raise ValueError(
            f"the checkpoint belongs to a run with another multirate_train_time: {changed}. Resume with the time "
            "of the checkpoint, or start a new run."
        )
    changed = differences(before.setup, plan.setup)
    if changed:
        logger.warning("the run that is resumed had another set-up, so its time may be missed: %s.", changed)
    return cast(dict[str, Any], saved)


def used_by_purpose(reading: Reading) -> dict[str, float]:
    """Seconds of ``reading`` by purpose, as a plan has them."""
    return {"training": reading.training, "evaluation": reading.evaluation, "saving": reading.saving}


def write_plan(plan: TrainTimePlan, folder: Path) -> None:
    """Write ``plan`` into ``folder`` once its number of steps is settled. A failure is only logged."""
    if not plan.totals:
        return
    try:
        plan.write(folder)
    except OSError as error:
        logger.warning("%s cannot be written: %s. Checkpoints have the plan too.", folder / FILE, error)
