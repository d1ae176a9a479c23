"""The machine, the versions and the commit of a measurement."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).parent.parent
PACKAGES = ("hf-multirate", "torch", "transformers", "accelerate", "peft", "datasets")


class UncommittedFilesError(ValueError):
    """Files differ from the commit that a result would name."""


def hardware() -> dict[str, Any]:
    """Processor, the vector instructions that torch uses on it, its cores, and the threads of torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    processor = ", ".join(sorted(models)) or platform.processor()
    sizes = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    instructions = torch.backends.cpu.get_cpu_capability()
    return {"processor": processor, "instructions": instructions, "architecture": platform.machine(), **sizes}


def processor_of(machine: Mapping[str, Any]) -> str:
    """Processor and vector instructions of a result. Older results have no instructions."""
    return ", ".join(str(machine[name]) for name in ("processor", "instructions") if name in machine)


def in_words(machine: Mapping[str, Any]) -> str:
    """Processor, threads, version of torch and commit of a result, for a page."""
    return (
        f"{processor_of(machine)}, {machine['threads']} thread of {machine['cores']} cores, "
        f"torch {machine['versions']['torch']}, commit {machine['commit'][:7]}"
    )


def versions() -> dict[str, str]:
    """Versions of the packages that decide about results and seconds."""
    return {package: version(package) for package in PACKAGES}


def commit(out: Path, *, allow_dirty: bool) -> dict[str, Any]:
    """The commit that is measured, and whether files differ from it; those below ``out`` do not count.

    Raises:
        UncommittedFilesError: files differ from the commit, and ``allow_dirty`` is not set.
    """
    ours = [f":!{out.resolve().relative_to(ROOT)}"] if out.resolve().is_relative_to(ROOT) else []
    changed = git("status", "--porcelain", "--", ".", *ours)
    if changed and not allow_dirty:
        raise UncommittedFilesError(
            f"files differ from the commit that results would name, e.g. {changed.splitlines()[0].strip()!r}. Commit "
            "them, or run in a fresh clone; --allow-dirty marks the results, which the report then leaves out."
        )
    return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}


def git(*words: str) -> str:
    """Output of a git command in this repository."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine_id(machine: dict[str, Any]) -> str:
    """A short name of a commit on a machine. It follows from the content, so equal ones have one name in all files."""
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()
    return f"{machine['commit'][:7]}-{digest[:4]}"
