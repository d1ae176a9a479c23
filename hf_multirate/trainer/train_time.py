"""Training for a given time: reading the time, and the plan that a timed run follows.

Seconds go in, a number of steps comes out. The plan has everything of a timed run that depended on a clock, so a run
with the same plan takes the same steps with the same learning rates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_multirate.config.durations import parse_seconds
from hf_multirate.config.files import read_json, write_text
from hf_multirate.config.shapes import anything, choice, count, fields, items, number, table
from hf_multirate.config.validation import shown


FILE = "multirate_train_time.json"
"""File with the plan of a run, in its ``output_dir``."""

FORMAT = 1

COUNTS = ("everything", "training")
"""What the time covers: everything, or training without evaluation and saving."""

MIN_STEPS = 10
"""Smallest number of steps of a timed run."""

SHAPE = fields(
    {
        "format": count(FORMAT, FORMAT),
        "seconds": number(0.0),
        "counts": choice(COUNTS),
        "setup": table(anything),
        "measured": items(number(0.0)),
        "totals": items(fields({"after_step": count(1), "steps": count(1)})),
        "used": table(number(0.0)),
    }
)


@dataclass(frozen=True)
class TrainTime:
    """What the user asked for.

    Attributes:
        seconds: The time.
        counts: What it covers, one of `COUNTS`.
        plan: The plan to repeat; None for a run that makes its own.
        plan_path: The file of this plan.
    """

    seconds: float
    counts: str
    plan: TrainTimePlan | None = None
    plan_path: str | None = None


def train_time(
    time: Any, counts: str | None, plan_path: str | None, *, max_steps: int, name: str = "multirate_train_time"
) -> TrainTime | None:
    """The time to train for, from the settings of the same names.

    Args:
        time: A time that `parse_seconds` reads; None without a time.
        counts: What it covers, one of `COUNTS`; None for the first.
        plan_path: File with the plan to repeat; None without a plan.
        max_steps: ``max_steps`` of the arguments, which must not be set.
        name: Name of the setting ``time`` in error messages.

    Returns:
        The time; None if neither a time nor a plan is given.

    Raises:
        ValueError: a value cannot be read, or the settings contradict each other.
    """
    if time is None and plan_path is None:
        if counts is not None:
            raise ValueError(
                f"multirate_train_time_counts is {counts!r}, but there is no multirate_train_time. Set it, or remove "
                "multirate_train_time_counts."
            )
        return None
    if max_steps > 0:
        name = name if plan_path is None else "multirate_train_time_plan"
        raise ValueError(
            f"max_steps is {max_steps} and {name} is given too, but each of them determines the number of steps. "
            "Remove one of the two."
        )
    seconds = None if time is None else parse_seconds(name, time)
    if plan_path is None:
        assert seconds is not None
        return TrainTime(seconds, counts or COUNTS[0])
    plan = TrainTimePlan.read(plan_path)
    given = {"seconds": seconds, "counts": counts}
    changed = differences({"seconds": plan.seconds, "counts": plan.counts}, {k: v for k, v in given.items() if v})
    if changed:
        raise ValueError(
            f"multirate_train_time_plan is {plan_path!r}, but {changed}. Remove {name} and "
            "multirate_train_time_counts, which the plan has already."
        )
    return TrainTime(plan.seconds, plan.counts, plan, plan_path)


@dataclass
class TrainTimePlan:
    """Progress of a timed run by step, from 0 at its start to 1 at its end.

    The learning rate of step ``i``, counted from 0, is that of the schedule at ``progress(i)``. On the first steps,
    progress is the share of the time for steps that had passed, so a head start is no progress. Once the number of
    steps is settled, each step adds the same.

    Attributes:
        seconds: The time asked for.
        counts: What the time covers, one of `COUNTS`.
        setup: The parts of the set-up that a plan belongs to, as JSON values.
        measured: Progress after 0, 1, 2, ... of the measured steps.
        totals: Pairs ``(step, steps)``: after ``step`` steps the number of steps of the run was set to ``steps``. The
            first pair is after the measured steps, a later pairs are corrections.
        used: Seconds by purpose at the time of writing; for information only.
    """

    seconds: float
    counts: str
    setup: dict[str, Any]
    measured: list[float] = field(default_factory=lambda: [0.0])
    totals: list[tuple[int, int]] = field(default_factory=list)
    used: dict[str, float] = field(default_factory=dict)

    def total(self, step: int) -> int | None:
        """Number of steps of the run as known after ``step`` steps; None while steps are measured."""
        known = [steps for after, steps in self.totals if after <= step]
        return known[-1] if known else None

    def progress(self, step: int) -> float:
        """Progress after ``step`` steps.

        >>> plan = TrainTimePlan(60.0, "everything", {}, measured=[0.0, 0.2], totals=[(1, 5), (3, 4)])
        >>> [round(plan.progress(step), 3) for step in range(5)]
        [0.0, 0.2, 0.4, 0.6, 1.0]
        """
        if step < len(self.measured):
            return self.measured[step]
        progress = self.measured[-1]
        ends = [after for after, _ in self.totals[1:]] + [step]
        for (after, steps), end in zip(self.totals, ends, strict=True):
            last = min(step, end, steps)
            progress = 1.0 - (1.0 - progress) * (steps - last) / (steps - after)
            if step <= end:
                break
        return progress

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "format": FORMAT,
            "seconds": self.seconds,
            "counts": self.counts,
            "setup": self.setup,
            "measured": list(self.measured),
            "totals": [{"after_step": after, "steps": steps} for after, steps in self.totals],
            "used": {purpose: round(seconds, 3) for purpose, seconds in self.used.items()},
        }

    @classmethod
    def from_dict(cls, values: Any) -> TrainTimePlan:
        """The plan of `to_dict`.

        Raises:
            ValueError: the values are no plan. The message contains only the reason.
        """
        SHAPE(values, "the plan")
        totals = [(entry["after_step"], entry["steps"]) for entry in values["totals"]]
        measured = [float(progress) for progress in values["measured"]]
        plan = cls(values["seconds"], values["counts"], values["setup"], measured, totals, values["used"])
        plan._check()
        return plan

    def _check(self) -> None:
        """Raise `ValueError` if progress would go backwards or above 1, or the numbers of steps contradict."""
        starts = [after for after, _ in self.totals]
        if not self.measured or self.measured[0] != 0.0 or self.measured != sorted(self.measured):
            raise ValueError("the progress of its measured steps does not rise from 0")
        if self.measured[-1] > 1.0 or (starts and starts[0] != len(self.measured) - 1):
            raise ValueError("its first number of steps does not follow the measured steps")
        if starts != sorted(set(starts)) or any(steps <= after for after, steps in self.totals):
            raise ValueError("its numbers of steps end before they were settled")
        if any(start >= steps for start, (_, steps) in zip(starts[1:], self.totals, strict=False)):
            raise ValueError("its numbers of steps were corrected after the end")

    def write(self, folder: Path) -> None:
        """Write the plan into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, path: str) -> TrainTimePlan:
        """Read a plan that `write` wrote.

        Raises:
            ValueError: the file cannot be read, or has no complete plan.
        """
        try:
            plan = cls.from_dict(read_json(Path(path)))
            if not plan.totals:
                raise ValueError("its run ended before the number of steps was settled")
        except ValueError as error:
            raise ValueError(
                f"multirate_train_time_plan is {path!r}, which cannot be used: {str(error).rstrip('.')}. Give the "
                f"{FILE} of a run with multirate_train_time."
            ) from None
        return plan


def differences(plan: Mapping[str, Any], present: Mapping[str, Any]) -> str:
    """The entries of the present set-up that differ in the plan, as a text; empty if there are none.

    >>> differences({"rows": 10, "processes": 1}, {"rows": 12, "processes": 1})
    'rows is 10 in the plan and 12 now'
    """
    keys = [key for key, value in present.items() if plan.get(key) != value]
    return "; ".join(
        f"{key} is {shown(plan.get(key))} in the plan and {shown(present.get(key))} now" for key in sorted(keys)
    )
