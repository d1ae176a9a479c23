"""Record of a run: one JSON file, from which reports are made."""

from __future__ import annotations

import json
import math
import os
import platform
import reprlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers

from hf_multirate.config.files import read_json, write_text
from hf_multirate.config.rate_group import NEVER
from hf_multirate.config.shapes import anything, fields
from hf_multirate.config.text import markdown
from hf_multirate.reporting.record_check import check_record


RECORD_VARIABLE = "HF_MULTIRATE_RECORD"
"""Environment variable with the folder for the record. If set, every run writes a record."""

FORMAT = 3
FILE = "multirate_record.json"
CHECKED_STEPS = 8
"""Number of steps at the start of a run whose batches have a checksum."""

CPU = torch.device("cpu")

NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Texts for the numbers that JSON does not support."""

TYPES_SHOWN_BY_VALUE = (str, bytes, int, float, bool, type(None), np.ndarray, np.generic)
"""Types whose ``repr`` depends only on the value."""


def environment_of(device: torch.device = CPU) -> dict[str, Any]:
    """Versions of libraries, and the machine of a run on ``device``."""
    versions = {
        "hf_multirate": version("hf-multirate"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions | {"accelerate": accelerate.__version__, "python": platform.python_version()},
        "device": name if device.type in ("cpu", "cuda") else f"{device.type}, {name}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


@dataclass
class RunRecord:
    """Record of a run.

    Attributes:
        config: The configuration, in the format of `hf_multirate.MultirateConfig.from_dict`.
        groups: The rate groups with their periods.
        arguments: The arguments of Trainer listed in `hf_multirate.reporting.record_check.ARGUMENTS`.
        data: Number of rows of the training data, and checksums of the batches of the first steps.
        model: Class of the model.
        blocks: Number of parameters and names of the rate groups of each block, in the order of the forward pass.
        standard: Whether every step was a step of standard training.
        start_step: Number of steps before the first entry of ``steps``; positive if the run was resumed without its
            earlier record.
        steps: Seconds of each step of this process, and its kind: 1 for full steps, 0 for fast steps.
        logs: Log entries of Trainer, with ``step``, ``seconds`` since the first step, and the share of them spent on
            loading data and on evaluation.
        summary: Number of steps and seconds of the whole run. Seconds of a step and speed-ups are those of `StepTimer`
            since the run was last resumed.
        environment: Versions of libraries, device, cores, threads and processes.
        format: Version of the file format.
    """

    config: dict[str, Any]
    groups: list[dict[str, Any]]
    arguments: dict[str, Any]
    data: dict[str, Any]
    model: str
    blocks: dict[str, dict[str, Any]]
    standard: bool
    start_step: int = 0
    steps: dict[str, list[float]] = field(default_factory=lambda: {"seconds": [], "full": []})
    logs: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=environment_of)
    format: int = FORMAT

    def write(self, folder: str | Path) -> Path:
        """Write the record into ``folder`` atomically, and return the path of the file."""
        path = Path(folder, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain_values(vars(self)), allow_nan=False) + "\n"
        write_text(path, text)
        return path


def plain_values(value: Any) -> Any:
    """Convert ``value`` to JSON values: NaN, infinities and objects of unknown types become strings."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else NON_FINITE[repr(float(value))]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _restore_non_finite(value: Any) -> Any:
    """Convert the strings that `plain_values` writes for NaN and infinities back to numbers."""
    if isinstance(value, dict):
        return {key: _restore_non_finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restore_non_finite(entry) for entry in value]
    return float(value) if isinstance(value, str) and value in NON_FINITE.values() else value


def read_record(folder: str | Path) -> RunRecord:
    """Read the record in ``folder``.

    Raises:
        ValueError: the folder has no record, or the file cannot be read, is not a valid record, or has another format.
    """
    path = Path(folder, FILE)
    if not os.path.lexists(path):
        raise ValueError(
            f"{str(folder)!r} has no {FILE}: give the output_dir of a run of MultirateTrainer. Standard training "
            "(--multirate off) writes a record only with --multirate_record True."
        )
    try:
        values = read_json(path)
        fields({"format": anything}, others=True)(values, "the file")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a record of a run: {error}. Train again.") from None
    if values["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {reprlib.repr(values['format'])}, but this version reads format {FORMAT}: use "
            "the version that wrote the file."
        )
    values |= {key: _restore_non_finite(values[key]) for key in ("logs", "summary") if key in values}
    try:
        check_record(values)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a record of a run: {error}. Train again.") from None
    return RunRecord(**values)


def checksum(batches: Sequence[Any], start: int = 0) -> int:
    """CRC-32 checksum of ``batches``, continued from ``start``. Objects of unknown types count by their type.

    Args:
        batches: Batches: nested mappings, lists and tuples of tensors and other values.
        start: Checksum to continue from.
    """
    for batch in batches:
        try:
            start = _checksum_of(batch, start)
        except Exception:  # an unusual batch must not stop training
            start = zlib.crc32(type(batch).__qualname__.encode(), start)
    return start


def _checksum_of(batch: Any, start: int) -> int:
    if isinstance(batch, Mapping):
        for name in sorted(batch, key=str):
            start = checksum([batch[name]], zlib.crc32(str(name).encode(), start))
        return start
    if isinstance(batch, (list, tuple)):
        return checksum(batch, start)
    if isinstance(batch, torch.Tensor):
        parts = _dense_parts(batch.detach())
        for part in parts:
            # Not `contiguous()`: it may return a slice unchanged, with strides that `view(torch.uint8)` rejects.
            dense = part.cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            start = zlib.crc32(f"{dense.dtype}{tuple(dense.shape)}".encode(), start)
            start = zlib.crc32(dense.reshape(-1).view(torch.uint8).numpy().tobytes(), start)
        return start
    if isinstance(batch, np.ndarray) and not batch.dtype.hasobject:  # the repr of a large array is abbreviated
        start = zlib.crc32(f"{batch.dtype}{batch.shape}".encode(), start)
        return zlib.crc32(np.ascontiguousarray(batch).tobytes(), start)
    # The repr of other objects may contain their address in memory, which differs between runs.
    text = repr(batch) if isinstance(batch, TYPES_SHOWN_BY_VALUE) else type(batch).__qualname__
    return zlib.crc32(text.encode(), start)


def _dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Dense tensors with the values of ``tensor``."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout == torch.sparse_coo:
        coalesced = tensor.coalesce()
        return [coalesced.indices(), coalesced.values()]
    return [tensor.to_dense() if tensor.layout != torch.strided else tensor]


def card_section(run: RunRecord) -> str:
    """Section of a model card in Markdown: rate groups, steps and speed-up of a run."""
    if run.standard:
        return "## Multirate training\n\nEvery parameter got a gradient at every step: standard training.\n"
    summary = run.summary
    rows = [f"| {markdown(group['name'])} | {group['period']} | {in_between(group)} |" for group in run.groups]
    figures = {
        "full steps": f"{summary['full_steps']} of {summary['full_steps'] + summary['fast_steps']}",
        "seconds of a full step": format_number(summary["seconds_full_step"]),
        "seconds of a fast step": format_number(summary["seconds_fast_step"]),
        "speed-up over full steps, whole run": format_number(summary["speedup"]),
        "speed-up over full steps, predicted": format_number(summary["speedup_predicted_of_run"]),
    }
    head_start = summary.get("head_start")
    if head_start is not None:
        figures["steps of the head before training"] = f"{head_start['steps']}, on {head_start['batches']} batches"
    stages = {name: markdown(text) for name, text in stage_rows(run).items()}
    return "\n".join(
        [
            "## Multirate training",
            "",
            "Trained with hf_multirate (Vlaar and Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022).",
            "",
            "| rate group | period | idle rule |",
            "|---|---|---|",
            *rows,
            "",
            "| figure | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in (figures | stages).items()),
            "",
        ]
    )


def stage_rows(run: RunRecord) -> dict[str, str]:
    """Share of training of each stage -> its periods and predicted speed-up; empty without stages."""
    rows, begin = {}, 0.0
    for number, stage in enumerate(run.summary.get("stages", []), 1):
        periods = ", ".join(f"{name}: {period}" for name, period in stage["periods"].items())
        speedup = format_number(stage["speedup_predicted"])
        label = f"stage {number}, from {begin:.0%} to {stage['until']:.0%}"
        rows[label] = f"periods {periods}; predicted speed-up {speedup}"
        begin = stage["until"]
    return rows


def in_between(group: Mapping[str, Any]) -> str:
    """Idle rule of a rate group in a record, as a short text."""
    if group.get("random_subset") is not None:
        return "random subset"
    if group["period"] in (1, NEVER):
        return "-"
    steps = group["drift_steps"]
    return str(group["idle"]) if steps is None else f"drift for {steps} steps"


def format_number(value: float | None) -> str:
    """Format a number with four significant digits; None becomes a dash."""
    return "-" if value is None else f"{value:.4g}"
