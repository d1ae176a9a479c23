"""Comparison of the records of a run and a baseline, and checks that they are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.durations import shown_seconds
from hf_multirate.config.text import one_line
from hf_multirate.reporting.run_record import RunRecord, format_number


EQUAL_ARGUMENTS = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
"""Arguments that must be equal in both runs."""

NOTED_ARGUMENTS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm")
"""Arguments that may differ on purpose; the page lists the differences."""

NOTED_SETTINGS = {
    "head_lr_scale": "head_lr_scale",
    "lr_decay": "lr_decay",
    "head_start": "batches of a head start",
    "head_start_steps": "steps of a head start",
    "head_start_lr": "learning rate of a head start",
}
"""Settings of a configuration that standard training has too, and their labels. The page lists differences."""

HEAD_START_SETTINGS = ("head_start_steps", "head_start_lr")
"""Those that have no effect without a head start."""

MACHINE_FIELDS = ("device", "cores", "threads", "processes")


def differences(run: RunRecord, baseline: RunRecord) -> list[str]:
    """Differences that make ``run`` and ``baseline`` incomparable, as texts."""
    pairs = _arguments(run, baseline, EQUAL_ARGUMENTS)
    pairs["model"] = (run.model, baseline.model)
    pairs["rows of training data"] = (run.data["rows"], baseline.data["rows"])
    pairs["checksums of the first batches"] = (run.data["checksums"], baseline.data["checksums"])
    if equal_time(run, baseline) is None:
        pairs["steps"] = (run.summary["steps"], baseline.summary["steps"])
    pairs |= {name: (run.environment[name], baseline.environment[name]) for name in MACHINE_FIELDS}
    unequal = _unequal(pairs)
    return unequal if baseline.standard else [*unequal, "the baseline is not standard training"]


def equal_time(run: RunRecord, baseline: RunRecord) -> float | None:
    """Seconds for which both runs were to train; None if they have no such time, or different ones."""
    given: float | None = run.summary.get("train_time")
    return given if given == baseline.summary.get("train_time") else None


def notes(run: RunRecord, baseline: RunRecord) -> list[str]:
    """Differences in other settings, as texts."""
    pairs = _arguments(run, baseline, NOTED_ARGUMENTS)
    both_start = run.config.get("head_start") and baseline.config.get("head_start")
    for name, label in NOTED_SETTINGS.items():
        if both_start or name not in HEAD_START_SETTINGS:
            default = vars(MultirateConfig)[name]  # for an older record without this field
            pairs[label] = (run.config.get(name, default), baseline.config.get(name, default))
    return _unequal(pairs)


def _arguments(run: RunRecord, baseline: RunRecord, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    return {name: (run.arguments[name], baseline.arguments[name]) for name in names}


def _unequal(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {one} and {other}" for name, (one, other) in pairs.items() if one != other]


def training_seconds(run: RunRecord) -> float:
    """Seconds from the first step to the end of training and of a head start, without evaluation."""
    return float(run.summary["seconds"] - run.summary["seconds_aside"].get("evaluation", 0.0))


def metrics(run: RunRecord) -> dict[str, float]:
    """Last value of each evaluation metric, without durations."""
    values: dict[str, float] = {}
    for entry in run.logs:
        values |= {key: value for key, value in entry.items() if is_metric(key)}
    return values


def is_metric(key: str) -> bool:
    """Whether a key of Trainer's logs is an evaluation metric."""
    return key.startswith("eval_") and not key.endswith(("runtime", "per_second"))


def compare_records(run: RunRecord, baseline: RunRecord | None) -> dict[str, Any]:
    """Compute all figures of the page.

    Args:
        run: Record of the run.
        baseline: Record of the baseline, or None.

    Returns:
        Figures by name, as in ``report.json``. With a baseline, they include its figures, the speed-up over it, and
        the differences between the two runs.
    """
    summary = run.summary
    figures: dict[str, Any] = {
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
        figures["baseline_steps"] = baseline.summary["steps"]
        figures["baseline_seconds"] = training_seconds(baseline)
        figures["baseline_seconds_full_step"] = baseline.summary["seconds_full_step"]
        figures["baseline_metrics"] = metrics(baseline)
        seconds = figures["seconds"]
        figures["train_time"] = equal_time(run, baseline)
        figures["speedup_proved"] = figures["baseline_seconds"] / seconds if seconds > 0 else None
        figures["differences"] = differences(run, baseline)
        figures["notes"] = notes(run, baseline)
    return figures


def summary_sentence(figures: dict[str, Any]) -> str:
    """Summary of the figures in one or two sentences."""
    if "speedup_proved" not in figures:
        speedup = figures["speedup"]
        predicted = format_number(figures["speedup_predicted"])
        unknown = "No step was finished." if not figures["steps"] else (
            f"No step was one of standard training (predicted speed-up: {predicted})."
        )  # fmt: skip
        first = unknown if speedup is None else (
            f"The run was {speedup:.2f} times as fast as the same number of its full steps "
            f"(predicted: {predicted})."
        )  # fmt: skip
        return f"{first} A comparison of accuracy and time with standard training needs a baseline run."
    shared = [key for key in figures["metrics"] if key in figures["baseline_metrics"]]
    preferred = [key for key in shared if key != "eval_loss"] or shared
    scores = "".join(
        f" The final {one_line(key)} is {figures['metrics'][key]:.4g}, and {figures['baseline_metrics'][key]:.4g} for "
        "the baseline."
        for key in preferred[:1]
    )
    if figures["train_time"] is not None:
        return (
            f"Both runs trained for {shown_seconds(figures['train_time'])}: {figures['steps']} steps, and "
            f"{figures['baseline_steps']} of the baseline.{scores}"
        )
    if figures["speedup_proved"] is None:
        return f"No step was finished.{scores}"
    return (
        f"Training took {figures['seconds']:.1f} seconds, the baseline {figures['baseline_seconds']:.1f} seconds: "
        f"{figures['speedup_proved']:.2f} times as fast.{scores}"
    )
