"""The two files that a controller adds to a checkpoint, and checks that they belong to that checkpoint."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_multirate.config.files import read_json, write_text, write_whole
from hf_multirate.config.shapes import LARGEST_EXACT_INT, anything, count, fields, table, text


FORMAT = 1

FINGERPRINTED_FILES = (
    "optimizer*", "optimizer*/*", "*.safetensors", "*/*.safetensors", "pytorch_model*.bin", "*/pytorch_model*.bin",
    "adapter_model*.bin", "*/*.distcp",
)  # fmt: skip
"""Patterns of the files with weights or optimizer state in a checkpoint."""

BLOCK, BLOCKS = 1 << 16, 16
"""Size of a block that is read for a fingerprint, in bytes, and number of such blocks per file."""

SHAPE = fields(
    {
        "format": count(FORMAT, FORMAT),
        "step": count(),
        "skipped_steps": count(),
        "config": table(anything),
        "beside": table(text),
        "tensors": text,
        "checksum": text,
    }
)


class StateLoader(Protocol):
    """An object that can load a state, such as a controller."""

    def load_state_dict(self, state: Any) -> None:
        """Load a `state_dict`."""


@dataclass(frozen=True)
class SavedState:
    """The state of a controller in a checkpoint.

    Attributes:
        path: The file with the tensors.
        skipped_steps: Number of steps before the checkpoint that a gradient scaler skipped.
        config: The configuration of the run that wrote the checkpoint.
        state: The ``state_dict()`` of the controller.
    """

    path: Path
    skipped_steps: int
    config: dict[str, Any]
    state: Any

    def load_into(self, target: StateLoader) -> None:
        """Load the state into ``target``.

        Raises:
            ValueError: the state does not fit; the error names the file.
        """
        try:
            target.load_state_dict(self.state)
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{str(self.path)!r} cannot be used: {reason}. {_remedy(self.path)}") from None


class StaleError(ValueError):
    """The files are complete but belong to another checkpoint."""


def write_saved(json_path: Path, step: int, skipped_steps: int, config: dict[str, Any], state: Any) -> None:
    """Write both files into a checkpoint, after its weights and optimizer state.

    Args:
        json_path: Path of the JSON file; the file with the tensors has the suffix ``.pt``.
        step: Step of the checkpoint.
        skipped_steps: See `SavedState`.
        config: The configuration, as JSON values.
        state: The state of the controller: plain values and tensors.
    """
    tensors = json_path.with_suffix(".pt")
    write_whole(tensors, lambda file: torch.save(state, file))
    values: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "skipped_steps": skipped_steps,
        "config": config,
        "beside": _fingerprints(json_path),
        "tensors": _digest(tensors),
    }
    values = json.loads(json.dumps(values))  # the values that a reader will get
    write_text(json_path, json.dumps({**values, "checksum": _checksum(values)}, indent=2) + "\n")


def read_saved(json_path: Path) -> SavedState | None:
    """Read both files of a checkpoint.

    Returns:
        The saved state; None if the checkpoint has neither file.

    Raises:
        StaleError: the files belong to another checkpoint. The message contains only the reason.
        ValueError: one of the files is missing or damaged.
    """
    tensors = json_path.with_suffix(".pt")
    if not json_path.exists() and not tensors.exists():
        return None
    for path, other in ((json_path, tensors), (tensors, json_path)):
        if not path.exists():
            raise _damaged_error(other, f"it belongs together with {path.name}, but the checkpoint has no {path.name}")
    try:
        values = read_json(json_path)
        SHAPE(values, "the file")
        count(0, values["step"])(values["skipped_steps"], "skipped_steps")
        checksum = values.pop("checksum")
        if _checksum(values) != checksum:
            raise ValueError("its values were changed after it was written")
    except ValueError as error:
        raise _damaged_error(json_path, str(error)) from None
    _require_same_checkpoint(json_path, values)
    state = _read_tensors(tensors, values["tensors"])
    return SavedState(tensors, values["skipped_steps"], values["config"], state)


def _read_tensors(path: Path, digest: str) -> Any:
    reason = f"it was not written together with {path.with_suffix('.json').name}"
    try:
        if _digest(path) == digest:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds of errors for damaged files
        reason = f"it cannot be read ({type(error).__name__})"
    raise _damaged_error(path, reason)


def _damaged_error(path: Path, reason: str) -> ValueError:
    return ValueError(f"{str(path)!r} is damaged: {reason}. {_remedy(path)}")


def _remedy(path: Path) -> str:
    return (
        f"Resume from an earlier checkpoint, or delete {path.stem}.json and {path.stem}.pt in this checkpoint. Then "
        "the cycle continues at the step of the checkpoint, but drift and averaged copies start from scratch."
    )


def _require_same_checkpoint(json_path: Path, values: dict[str, Any]) -> None:
    """Raise `StaleError` if the files were written to a checkpoint with another step or other weights."""
    step = _step_of(json_path.with_name(TRAINER_STATE_NAME))
    if step is not None and step != values["step"]:
        raise StaleError(f"they are of step {values['step']}, but the checkpoint is of step {step}")
    present = _fingerprints(json_path)
    changed = sorted(name for name, saved in values["beside"].items() if present.get(name, saved) != saved)
    if changed:
        raise StaleError(f"they were written with another {changed[0]}")


def require_complete(checkpoint: Path) -> None:
    """Check that a checkpoint is complete: the state of Trainer is written last.

    Raises:
        ValueError: that state cannot be read, so a run ended while it wrote the checkpoint. The message names the
            last complete checkpoint.
    """
    if not checkpoint.is_dir() or _has_state(checkpoint):
        return
    checkpoints = checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(number): path for path in checkpoints if (number := path.name.rpartition("-")[2]).isdecimal()}
    complete = next((str(steps[step]) for step in sorted(steps, reverse=True) if _has_state(steps[step])), None)
    remedy = "train from the start, because there is no complete checkpoint"
    raise ValueError(
        f"the checkpoint {str(checkpoint)!r} is incomplete: it has no readable {TRAINER_STATE_NAME}, which is written "
        f"last. Delete it and {remedy if complete is None else f'resume from the last complete one, {complete!r}'}."
    )


def _has_state(checkpoint: Path) -> bool:
    with suppress(Exception):  # Trainer raises many kinds of errors for damaged files
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return True
    return False


def _step_of(path: Path) -> int | None:
    """Step in a state of Trainer; None if it cannot be read, for which Trainer raises its own error."""
    with suppress(ValueError):
        values = read_json(path)
        fields({"global_step": count(0, LARGEST_EXACT_INT)}, others=True)(values, "the file")
        return int(values["global_step"])
    return None


def _fingerprints(json_path: Path) -> dict[str, str]:
    """Name -> size and digest of a few blocks, for each file with weights or optimizer state."""
    folder, stem = json_path.parent, json_path.stem
    files = {path for pattern in FINGERPRINTED_FILES for path in folder.glob(pattern)}
    files = {path for path in files if path.is_file() and path.stem != stem}
    return {path.relative_to(folder).as_posix(): _fingerprint(path) for path in sorted(files)}


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for i in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * i // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return f"{size}-{digest.hexdigest()[:32]}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
