"""Compare two records, and find what keeps a comparison from being valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.config.text import one_line
from hf_multirate.reporting.run_record import RunRecord, format_number


SAME = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
"""Arguments that have to be equal."""

WORTH_KNOWING = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm")
"""Arguments that may differ on purpose; the page says so."""

MACHINE = ("device", "cores", "threads", "processes")


def differences(run: RunRecord, baseline: RunRecord) -> list[str]:
    """Differences that make a comparison of ``run`` with ``baseline`` invalid, in words."""
    pairs = _arguments(run, baseline, SAME)
    pairs["model"] = (run.model, baseline.model)
    pairs["rows of training data"] = (run.data["rows"], baseline.data["rows"])
    pairs["checksums of the first batches"] = (run.data["checksums"], baseline.data["checksums"])
    pairs["steps"] = (run.summary["steps"], baseline.summary["steps"])
    pairs |= {name: (run.environment[name], baseline.environment[name]) for name in MACHINE}
    found = _unequal(pairs)
    return found if baseline.standard else [*found, "the baseline is not standard training"]


def notes(run: RunRecord, baseline: RunRecord) -> list[str]:
    """Other settings that differ, in words."""
    return _unequal(_arguments(run, baseline, WORTH_KNOWING))


def _arguments(run: RunRecord, baseline: RunRecord, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    return {name: (run.arguments[name], baseline.arguments[name]) for name in names}


def _unequal(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {one} and {other}" for name, (one, other) in pairs.items() if one != other]


def training_seconds(run: RunRecord) -> float:
    """Seconds from the first step to the end of training, without evaluation."""
    return float(run.summary["seconds"] - run.summary["seconds_aside"].get("evaluation", 0.0))


def metrics(run: RunRecord) -> dict[str, float]:
    """The last value of every metric of evaluation, but durations."""
    found: dict[str, float] = {}
    for entry in run.logs:
        found |= {key: value for key, value in entry.items() if is_metric(key)}
    return found


def is_metric(key: str) -> bool:
    """Whether a key of Trainer's logs is that of a metric on evaluation data."""
    return key.startswith("eval_") and not key.endswith(("runtime", "per_second"))


def compare_records(run: RunRecord, baseline: RunRecord | None) -> dict[str, Any]:
    """All figures of the page, by name; those of the baseline and the differences to it if there is one."""
    summary = run.summary
    found: dict[str, Any] = {
        "steps": summary["steps"],
        "full_steps": summary["full_steps"],
        "seconds": training_seconds(run),
        "seconds_full_step": summary["seconds_full_step"],
        "seconds_fast_step": summary["seconds_fast_step"],
        "speedup_predicted": summary["speedup_predicted_of_run"],
        "speedup": summary["speedup"],
        "speedup_of_steps": summary["speedup_of_steps"],
        "metrics": metrics(run),
        "seconds_aside": summary["seconds_aside"],
    }
    if baseline is not None:
        found["baseline_steps"] = baseline.summary["steps"]
        found["baseline_seconds"] = training_seconds(baseline)
        found["baseline_seconds_full_step"] = baseline.summary["seconds_full_step"]
        found["baseline_metrics"] = metrics(baseline)
        spent = found["seconds"]
        found["speedup_proved"] = found["baseline_seconds"] / spent if spent > 0 else None
        found["differences"] = differences(run, baseline)
        found["notes"] = notes(run, baseline)
    return found


def summary_sentence(figures: dict[str, Any]) -> str:
    """The result in one or two sentences."""
    if "speedup_proved" not in figures:
        realised = figures["speedup"]
        found = "No step was finished." if realised is None else (
            f"The run was {realised:.2f} times as fast as a run of only full steps would have been "
            f"({format_number(figures['speedup_predicted'])} predicted)."
        )  # fmt: skip
        return f"{found} Without a baseline this says nothing about accuracy, nor about standard training."
    shared = [key for key in figures["metrics"] if key in figures["baseline_metrics"]]
    wanted = [key for key in shared if key != "eval_loss"] or shared
    ends = "".join(
        f" It ends with {one_line(key)} {figures['metrics'][key]:.4g}, the baseline with "
        f"{figures['baseline_metrics'][key]:.4g}."
        for key in wanted[:1]
    )
    if figures["speedup_proved"] is None:
        return f"No step was finished.{ends}"
    return (
        f"Training took {figures['seconds']:.1f} seconds, the baseline {figures['baseline_seconds']:.1f}: "
        f"{figures['speedup_proved']:.2f} times as fast.{ends}"
    )
