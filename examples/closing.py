"""How the example scripts begin and end: a command line, paths that can be written, a table and a summary file."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

from glue_data import InputError, one_line


COMMON: dict[str, Any] = {
    "save_strategy": "no",
    "logging_steps": 50,
    "seed": 0,
    "dataloader_pin_memory": torch.cuda.is_available(),  # without a GPU torch warns that it has no effect
}
"""Defaults in which all scripts differ from TrainingArguments; the command line wins over each."""

SUMMARY_FILE = "multirate_summary.json"
RECORDED_ARGUMENTS = (
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "bf16",
    "fp16",
)
PACKAGES = ("hf-multirate", "torch", "transformers", "accelerate", "datasets")


def parse(
    kinds: tuple[type, ...], defaults: Mapping[str, Any], argv: list[str] | None, *, parts: bool = False
) -> tuple[Any, ...]:
    """Command line to dataclasses; ``defaults`` are those in which a script differs from their own.

    Most scripts train and evaluate. Those that can do one of both have ``parts``.
    """
    words = sys.argv[1:] if argv is None else argv
    refused = [] if parts else [word for word in words if word.startswith(("--do_train", "--do_eval", "--do_predict"))]
    if refused:
        raise InputError(f"this script always trains and evaluates, got {refused[0]}. Remove it.")
    parser = HfArgumentParser(kinds)
    parser.set_defaults(**defaults)
    try:
        return parser.parse_args_into_dataclasses(args=words)
    except ValueError as error:  # argparse itself exits; this is a value that a dataclass refuses
        raise InputError(str(error)) from error


def check_paths(args: TrainingArguments) -> None:
    """Fail now, not after the training, if the results cannot be written."""
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.output_dir).close()
    except OSError as error:
        raise InputError(
            f"--output_dir {args.output_dir!r} cannot be written ({error.strerror}); give a folder that can."
        ) from error
    checkpoint = args.resume_from_checkpoint
    if checkpoint and not Path(checkpoint).is_dir():
        raise InputError(
            f"--resume_from_checkpoint {checkpoint!r} is not a folder; give one named checkpoint-STEP from the "
            "--output_dir of a run with --save_strategy steps or epoch."
        )


def loaded(load: Callable[..., Any], option: str, name: str, **settings: Any) -> Any:
    """The result of ``load(name)``; errors name the ``option`` that gave the name."""
    try:
        return load(name, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{option} {name!r} could not be loaded ({one_line(error)}). Give what is saved on this machine, or a hub "
            "name while connected."
        ) from error


def peak_memory_bytes() -> int | None:
    """Highest use so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_run(args: TrainingArguments, **more: Any) -> dict[str, Any]:
    """The configuration that belongs beside every number of the summary."""
    settings = args.to_dict()
    names = [*RECORDED_ARGUMENTS, *(name for name in settings if name.startswith("multirate"))]
    return {
        **more,
        **{name: settings[name] for name in names if name in settings},
        "device": str(args.device),
        "processes": args.world_size,
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": sys.version.split()[0], **{package: _installed(package) for package in PACKAGES}},
    }


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Replace the file in one step: a reader finds the old summary or the new one, never a half."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def table(summary: Mapping[str, Any]) -> str:
    """The numbers of the summary, one per line."""
    rows = [(key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in summary.items()]
    rows = [(key, value) for key, value in rows if key not in ("configuration", "total_flos")]
    width = max(len(key) for key, _ in rows)
    return "\n".join(["", *(f"{key:<{width}}  {value:>14}" for key, value in rows)])


def close(trainer: Trainer, summary: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write the summary file and print the table; ``more`` says what was trained on what."""
    summary["peak_memory_bytes"] = peak_memory_bytes()
    multirate = vars(trainer).get("multirate")  # MultirateTrainer has it
    if multirate is not None and multirate.activation_cache is not None:
        summary["activation_cache"] = multirate.activation_cache.summary()
    if trainer.is_world_process_zero():
        summary["configuration"] = describe_run(trainer.args, **more)
        write_summary(summary, Path(trainer.args.output_dir, SUMMARY_FILE))
        print(table(summary))
    return summary


def run(main: Callable[[], Any]) -> None:
    """Call ``main``; what the user can put right ends the script with one line."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
