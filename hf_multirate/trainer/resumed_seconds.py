"""Seconds of a run up to the checkpoint from which it is resumed, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_multirate.reporting.run_record import RunRecord


OUTSIDE = "seconds_of_"
"""Prefix, in log entries, of the seconds spent outside of steps."""


def seconds_until(
    record: RunRecord, steps: int, logs: Sequence[Mapping[str, float]]
) -> tuple[float, dict[str, float]]:
    """Seconds of the first ``steps`` steps of a run, and the part outside of steps by purpose.

    They are exact if the record ends there. Else they are those of the last log entry, and of the steps after it.

    Args:
        record: The record of the run.
        steps: Number of steps.
        logs: Log entries of these steps.
    """
    aside = record.summary["seconds_aside"]
    if steps == len(record.steps["seconds"]):
        return record.summary["seconds"], dict(aside)
    start: dict[str, float] = {"step": record.start_step, "seconds": aside.get("head_start", 0.0)}
    if "head_start" in aside:  # precedes the first step
        start[f"{OUTSIDE}head_start"] = aside["head_start"]
    last = max([start, *logs], key=lambda entry: entry["seconds"])
    since = record.steps["seconds"][max(0, int(last["step"]) - record.start_step) : steps]
    outside = {key.removeprefix(OUTSIDE): last[key] for key in last if key.startswith(OUTSIDE)}
    return last["seconds"] + sum(since), outside
