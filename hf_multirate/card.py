"""The section on a model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_multirate.record import RunRecord
from hf_multirate.text import markdown


def card_section(run: RunRecord) -> str:
    """Rate groups and speed-up as Markdown; figures are those of the record."""
    if run.plain:
        return "## Multirate training\n\nEvery parameter had a gradient at every step: plain training.\n"
    summary = run.summary
    rows = [f"| {markdown(group['name'])} | {group['period']} | {in_between(group)} |" for group in run.groups]
    told = {
        "steps with a full backward": f"{summary['full_steps']} of {summary['full_steps'] + summary['fast_steps']}",
        "seconds of a full step": figure(summary["seconds_full_step"]),
        "seconds of another step": figure(summary["seconds_fast_step"]),
        "speed-up over full steps, whole run": figure(summary["speedup_of_run"]),
        "predicted": figure(summary["speedup_predicted_of_run"]),
    }
    return "\n".join(
        [
            "## Multirate training",
            "",
            "Trained with hf_multirate (Vlaar and Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022).",
            "",
            "| rate group | steps between gradients | in between |",
            "|---|---|---|",
            *rows,
            "",
            "| figure | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in told.items()),
            "",
        ]
    )


def in_between(group: Mapping[str, Any]) -> str:
    """What a rate group of a record does between two gradients."""
    if group["idle"] != "drift":
        return str(group["idle"])
    steps = group["drift_steps"]
    if group["period"] == 1:
        return "-"
    return "drift" if steps is None else f"drift for {steps} steps" if steps else "stand still"


def figure(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"
