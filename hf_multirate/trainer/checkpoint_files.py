"""The two files that a controller adds to a checkpoint: what ties them together, and to that checkpoint."""

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

TIED = (
    "optimizer*", "optimizer*/*", "*.safetensors", "*/*.safetensors", "pytorch_model*.bin", "*/pytorch_model*.bin",
    "adapter_model*.bin", "*/*.distcp",
)  # fmt: skip
"""Files of a checkpoint that hold weights, or the state of the optimizer."""

BLOCK, BLOCKS = 1 << 16, 16
"""Bytes that are read in one place of a file, and how many such places there are."""

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


class Taker(Protocol):
    """What takes over a state of a checkpoint."""

    def load_state_dict(self, state: Any) -> None:
        """Take over a `state_dict`."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds of a controller.

    Attributes:
        path: The file with the tensors.
        skipped_steps: Steps until the checkpoint that a gradient scaler skipped.
        config: The configuration that wrote it.
        state: What ``state_dict()`` of the controller returned.
    """

    path: Path
    skipped_steps: int
    config: dict[str, Any]
    state: Any

    def hand_over(self, taker: Taker) -> None:
        """Let ``taker`` load the state; what it finds wrong is said with the name of the file."""
        try:
            taker.load_state_dict(self.state)
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise ValueError(f"{str(self.path)!r} cannot be used: {reason}. {_remedy(self.path)}") from None


class StaleError(ValueError):
    """The files are whole, and were written for another checkpoint than the one they lie in."""


def write_saved(json_path: Path, step: int, skipped_steps: int, config: dict[str, Any], state: Any) -> None:
    """Write both files into a checkpoint that has its weights and the state of its optimizer already.

    Args:
        json_path: The one; the other has the suffix ``.pt``.
        step: Step of the checkpoint.
        skipped_steps: See `Saved`.
        config: Plain values.
        state: Plain values and tensors.
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
    values = json.loads(json.dumps(values))  # as a reader will find them
    write_text(json_path, json.dumps({**values, "checksum": _checksum(values)}, indent=2) + "\n")


def read_saved(json_path: Path) -> Saved | None:
    """Read both files; None if there is neither.

    Raises:
        StaleError: they are of another checkpoint; the message is the reason alone.
        ValueError: one of them is missing or damaged.
    """
    tensors = json_path.with_suffix(".pt")
    if not json_path.exists() and not tensors.exists():
        return None
    for path, other in ((json_path, tensors), (tensors, json_path)):
        if not path.exists():
            raise _damaged(other, f"the checkpoint has no {path.name}, which belongs to it")
    try:
        values = read_json(json_path)
        SHAPE(values, "the file")
        count(0, values["step"])(values["skipped_steps"], "skipped_steps")
        given = values.pop("checksum")
        if _checksum(values) != given:
            raise ValueError("its values are not those that were written")
    except ValueError as error:
        raise _damaged(json_path, str(error)) from None
    _require_beside(json_path, values)
    state = _read_tensors(tensors, values["tensors"])
    return Saved(tensors, values["skipped_steps"], values["config"], state)


def _read_tensors(path: Path, digest: str) -> Any:
    reason = f"it is not the file that was written together with {path.with_suffix('.json').name}"
    try:
        if _digest(path) == digest:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader stumbles on
        reason = f"it cannot be read ({type(error).__name__})"
    raise _damaged(path, reason)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{str(path)!r} is damaged: {reason}. {_remedy(path)}")


def _remedy(path: Path) -> str:
    return (
        f"Resume from an earlier checkpoint, or delete {path.stem}.json and {path.stem}.pt in this one: then the "
        "cycle continues at the step of the checkpoint, and what the files held starts from scratch."
    )


def _require_beside(json_path: Path, values: dict[str, Any]) -> None:
    """Raise `StaleError` if the checkpoint is of another step, or has other weights, than the one written to."""
    step = _step_of(json_path.with_name(TRAINER_STATE_NAME))
    if step is not None and step != values["step"]:
        raise StaleError(f"they are of step {values['step']}, and the checkpoint is of step {step}")
    now = _fingerprints(json_path)
    changed = sorted(name for name, known in values["beside"].items() if now.get(name, known) != known)
    if changed:
        raise StaleError(f"they were written beside another {changed[0]}")


def require_whole(checkpoint: Path) -> None:
    """Look for the state of Trainer in a checkpoint, which is written last.

    Raises:
        ValueError: it cannot be read, so a run ended while it wrote; the message names the last whole checkpoint.
    """
    if not checkpoint.is_dir() or _has_state(checkpoint):
        return
    others = checkpoint.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {int(number): other for other in others if (number := other.name.rpartition("-")[2]).isdecimal()}
    whole = next((str(steps[step]) for step in sorted(steps, reverse=True) if _has_state(steps[step])), None)
    remedy = "there is no whole one beside it, so train from the start"
    raise ValueError(
        f"the checkpoint {str(checkpoint)!r} is not whole: it has no {TRAINER_STATE_NAME} that can be read, which is "
        f"written last. Delete it; {remedy if whole is None else f'the last whole one is {whole!r}'}."
    )


def _has_state(checkpoint: Path) -> bool:
    with suppress(Exception):  # whatever Trainer stumbles on
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return True
    return False


def _step_of(path: Path) -> int | None:
    """Step in a state of Trainer; None if it cannot be read, of which Trainer itself says more."""
    with suppress(ValueError):
        values = read_json(path)
        fields({"global_step": count(0, LARGEST_EXACT_INT)}, others=True)(values, "the file")
        return int(values["global_step"])
    return None


def _fingerprints(json_path: Path) -> dict[str, str]:
    """Name -> size and digest of some places of each file with weights or the state of an optimizer."""
    folder, own = json_path.parent, json_path.stem
    found = {path for pattern in TIED for path in folder.glob(pattern) if path.is_file() and path.stem != own}
    return {path.relative_to(folder).as_posix(): _fingerprint(path) for path in sorted(found)}


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
