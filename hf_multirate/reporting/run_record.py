"""What is kept of a run, for a report on it: one JSON file."""

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
from hf_multirate.config.shapes import anything, fields
from hf_multirate.config.text import markdown
from hf_multirate.reporting.record_check import check_record


RECORD_VARIABLE = "HF_MULTIRATE_RECORD"
"""Environment variable with a folder for the record, instead of ``output_dir``; it asks for one of any run."""


FORMAT = 3
FILE = "multirate_record.json"
CHECKED_STEPS = 8
"""Steps of whose batches there are checksums."""

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""How numbers that JSON does not have are written."""

PLAIN = (str, bytes, int, float, bool, type(None), np.ndarray, np.generic)
"""Types of which the text is that of their value."""


def _environment() -> dict[str, Any]:
    versions = {
        "hf_multirate": version("hf-multirate"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": versions | {"accelerate": accelerate.__version__, "python": platform.python_version()},
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


@dataclass
class RunRecord:
    """A run in figures.

    Attributes:
        config: The configuration, as `hf_multirate.MultirateConfig.from_dict` reads it.
        groups: The rate groups, with the periods that were used.
        arguments: The arguments of Trainer named in `hf_multirate.reporting.record_check.ARGUMENTS`.
        data: Rows of the training data, and checksums of the batches of the first steps.
        model: Class of the model.
        blocks: By block, in the order of the forward pass: parameters, and names of the rate groups they are in.
        standard: Whether every step was that of standard training.
        start_step: Steps before the first in ``steps``: not 0 if a run was resumed without the record before it.
        steps: Seconds of the steps of this process, and 1 for full ones.
        logs: What Trainer has logged, with ``step`` and ``seconds`` since the first step, and how many of them went
            into loading data and evaluation.
        summary: Numbers of steps and seconds of the whole run; times of a step and speed-ups of `StepTimer`, since
            the run was last resumed.
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
    environment: dict[str, Any] = field(default_factory=_environment)
    format: int = FORMAT

    def write(self, folder: str | Path) -> Path:
        """Write the record into ``folder``, whole or not at all."""
        path = Path(folder, FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain_values(vars(self)), allow_nan=False) + "\n"
        write_text(path, text)
        return path


def plain_values(value: Any) -> Any:
    """``value`` in words of JSON: NaN and the infinities as texts, whatever it does not know as its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): plain_values(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else NOT_FINITE[repr(float(value))]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def _numbers(value: Any) -> Any:
    """The inverse of `plain_values` for what is not finite."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, str) and value in NOT_FINITE.values() else value


def read_record(folder: str | Path) -> RunRecord:
    """The record in ``folder``.

    Raises:
        ValueError: there is none, it cannot be read, it is not a record, or it is of another version of this package.
    """
    path = Path(folder, FILE)
    if not os.path.lexists(path):
        raise ValueError(
            f"{str(folder)!r} has no {FILE}: give the output_dir of a run of MultirateTrainer. Standard training "
            "(--multirate off) writes one if it is asked to, with --multirate_record True."
        )
    try:
        values = read_json(path)
        fields({"format": anything}, others=True)(values, "the file")
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a record of a run: {error}. Train again.") from None
    if values["format"] != FORMAT:
        raise ValueError(
            f"{str(path)!r} has format {reprlib.repr(values['format'])}, this version reads {FORMAT}: use the version "
            "that wrote it."
        )
    values |= {key: _numbers(values[key]) for key in ("logs", "summary") if key in values}
    try:
        check_record(values)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a record of a run: {error}. Train again.") from None
    return RunRecord(**values)


def checksum(batches: Sequence[Any], start: int = 0) -> int:
    """CRC-32 of what is in ``batches``, by name of input, going on from ``start``; of an unknown object its type."""
    for batch in batches:
        try:
            start = _checksum_of(batch, start)
        except Exception:  # a record stops no training, whatever a batch consists of
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
            # A clone has steps of one element, also of a slice of which `contiguous` finds nothing to change.
            plain = part.cpu().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            start = zlib.crc32(f"{plain.dtype}{tuple(plain.shape)}".encode(), start)
            start = zlib.crc32(plain.reshape(-1).view(torch.uint8).numpy().tobytes(), start)
        return start
    if isinstance(batch, np.ndarray) and not batch.dtype.hasobject:  # its text leaves out most of a large one
        start = zlib.crc32(f"{batch.dtype}{batch.shape}".encode(), start)
        return zlib.crc32(np.ascontiguousarray(batch).tobytes(), start)
    # What an object prints may be where it is in memory, which differs from run to run.
    told = repr(batch) if isinstance(batch, PLAIN) else type(batch).__qualname__
    return zlib.crc32(told.encode(), start)


def _dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Strided tensors that hold the values of ``tensor``."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [whole.indices(), whole.values()]
    return [tensor.to_dense() if tensor.layout != torch.strided else tensor]


def card_section(run: RunRecord) -> str:
    """Rate groups and speed-up as Markdown; figures are those of the record."""
    if run.standard:
        return "## Multirate training\n\nEvery parameter had a gradient at every step: standard training.\n"
    summary = run.summary
    rows = [f"| {markdown(group['name'])} | {group['period']} | {in_between(group)} |" for group in run.groups]
    figures = {
        "steps with a full backward": f"{summary['full_steps']} of {summary['full_steps'] + summary['fast_steps']}",
        "seconds of a full step": format_number(summary["seconds_full_step"]),
        "seconds of another step": format_number(summary["seconds_fast_step"]),
        "speed-up over full steps, whole run": format_number(summary["speedup"]),
        "predicted": format_number(summary["speedup_predicted_of_run"]),
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
            *(f"| {name} | {value} |" for name, value in figures.items()),
            "",
        ]
    )


def in_between(group: Mapping[str, Any]) -> str:
    """What a rate group of a record does between two gradients."""
    if group.get("random_subset") is not None:
        return "random subset"
    if group["period"] == 1:
        return "-"
    steps = group["drift_steps"]
    return str(group["idle"]) if steps is None else f"drift for {steps} steps"


def format_number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"
