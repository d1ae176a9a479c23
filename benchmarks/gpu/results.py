"""The file of results: one JSON line for each machine and for each cell, only appended to."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.jsonl import append_lines, read_lines


PACKAGES = ("hf-multirate", "torch", "transformers", "accelerate", "peft", "triton")
MEASURED, FAILED, SKIPPED = "measured", "failed", "skipped"

Line = dict[str, Any]


class OtherMachineError(ValueError):
    """The file has results of another device."""


def about(out: Path, device: Mapping[str, Any]) -> dict[str, Any]:
    """Device, processor, versions and commit; a copy without git has the commit ``unknown``."""
    try:
        at = machine.commit(out.parent, allow_dirty=True)
    except (OSError, subprocess.CalledProcessError):
        at = {"commit": "unknown", "dirty": True}
    return {**at, **device, **machine.hardware(), "versions": {"python": platform.python_version(), **_versions()}}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class GpuResults:
    """The cells of a file; of each the last line counts.

    Args:
        path: The file, which may not exist yet.

    Raises:
        ValueError: a line that is not the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[tuple[str, str], Line] = {}
        self.machines: dict[str, Line] = {}
        for line in read_lines(path) if path.exists() else []:
            self._keep(line)

    def _keep(self, line: Line) -> None:
        if line["kind"] == "machine":
            self.machines[line["id"]] = line
        else:
            self.cells[line["part"], line["cell"]] = line

    def require_device(self, device: str) -> None:
        """Check that all results are of ``device``.

        Raises:
            OtherMachineError: there are results of another one.
        """
        others = {line["device"] for line in self.machines.values()} - {device}
        if others:
            raise OtherMachineError(
                f"{self.path} has results of {others.pop()!r}, this is {device!r}. Give another --out, or move the "
                "file away."
            )

    def done(self, part: str, cell: str, *, repeat: bool) -> bool:
        """Whether a cell needs no run. One that lacked time is run again; with ``repeat`` all without a value are."""
        line = self.cells.get((part, cell))
        return line is not None and not line["again"] and (line["status"] == MEASURED or not repeat)

    def append_without_device(self, cell: Line) -> None:
        """Add the line of a cell that was not measured, with the machine of the line before."""
        key = next(reversed(self.machines), "")
        line = {"kind": "cell", **cell, "machine": key}
        append_lines(self.path, [line])
        self._keep(line)

    def append(self, cell: Line, measured_on: Mapping[str, Any]) -> None:
        """Add the line of a cell, and that of its machine if it is new."""
        key = machine.machine_id(dict(measured_on))
        lines = [] if key in self.machines else [{"kind": "machine", "id": key, **measured_on}]
        lines.append({"kind": "cell", **cell, "machine": key})
        append_lines(self.path, lines)
        for line in lines:
            self._keep(line)

    def of(self, part: str) -> list[Line]:
        """The cells of a part, in the order of the file."""
        return [line for (name, _), line in self.cells.items() if name == part]

    def values(self, part: str, status: str = MEASURED) -> dict[str, dict[str, Any]]:
        """Cell -> its values, for those with ``status``."""
        return {line["cell"]: line["values"] for line in self.of(part) if line["status"] == status}
