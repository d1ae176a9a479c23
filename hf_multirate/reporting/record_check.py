"""Validation of records: required fields, their types, and their consistency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_multirate.config.rate_group import NEVER
from hf_multirate.config.shapes import Shape, anything, count, fields, flag, items, number, optional, table, text
from hf_multirate.config.validation import LARGEST_INT


FROZEN = "frozen"
"""Name used for the rate group of frozen parameters, which belong to no group."""

ARGUMENTS = (
    "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "bf16", "fp16",
)  # fmt: skip
"""Arguments of Trainer in a record. The first two are seeds."""


def logged(value: Any, where: str) -> None:
    """Require a value of a log entry: a number, which may be NaN, or a bool."""
    if not isinstance(value, bool):
        number(finite=False)(value, where)


STEPS = count(1, LARGEST_INT)


def period(value: Any, where: str) -> None:
    """Require a number of steps, or ``"never"``."""
    if value != NEVER:
        STEPS(value, where)


GROUP: dict[str, Shape] = {
    "name": text,
    "patterns": items(text),
    "period": period,
    "idle": text,
    "drift_steps": optional(STEPS),
}

SUMMARY: dict[str, Shape] = {
    "seconds": number(0),
    "seconds_aside": table(number(0)),
    "steps": count(),
    "full_steps": count(),
    "fast_steps": count(),
    **dict.fromkeys(
        (
            "seconds_full_step", "seconds_fast_step", "speedup_predicted", "speedup_predicted_of_run",
            "speedup", "speedup_of_steps",
        ),
        optional(number(finite=False)),
    ),
}  # fmt: skip

STAGES = items(
    fields({"until": number(0), "periods": table(period), "speedup_predicted": optional(number(finite=False))})
)
"""The stages in the summary of a run that has some."""

ENVIRONMENT: dict[str, Shape] = {
    "versions": table(text),
    **dict.fromkeys(("device", "cores", "threads", "processes"), anything),
}

RECORD: dict[str, Shape] = {
    "config": table(anything),
    "groups": items(fields(GROUP, others=True)),
    "arguments": fields(dict.fromkeys(ARGUMENTS, anything), others=True),
    "data": fields({"rows": optional(count()), "checksums": items(count())}),
    "model": text,
    "blocks": table(fields({"parameters": count(), "groups": table(count())})),
    "standard": flag,
    "start_step": count(),
    "steps": fields({"seconds": items(number(0)), "full": items(count(0, 1))}),
    "logs": items(table(logged)),
    "summary": fields(SUMMARY, others=True),
    "environment": fields(ENVIRONMENT, others=True),
    "format": count(),
}


def check_record(values: Mapping[str, Any]) -> None:
    """Check the values of a record and their consistency.

    Raises:
        ValueError: a value is missing or has the wrong type, or two values contradict each other.
    """
    fields(RECORD)(values, "the record")
    STAGES(values["summary"].get("stages", []), "the record.summary.stages")
    optional(number(0))(values["summary"].get("train_time"), "the record.summary.train_time")
    steps = values["steps"]
    if len(steps["seconds"]) != len(steps["full"]):
        raise ValueError(
            f"the record has seconds for {len(steps['seconds'])} steps, but kinds for {len(steps['full'])} steps"
        )
    entry = fields({"step": count(), "seconds": number(0)}, others=True)
    for i, logged in enumerate(values["logs"]):
        entry(logged, f"the record.logs[{i}]")
    names = [group["name"] for group in values["groups"]]
    for block, parts in values["blocks"].items():
        unknown = sorted(parts["groups"].keys() - {*names, FROZEN})
        if unknown:
            raise ValueError(f"the record has no rate group {unknown[0]!r}, but its block {block!r} names it")
