"""Results of the accuracy benchmark: one file for each task and length, with one JSON line a run.

A file has four kinds of lines. Lines of the kinds ``task``, ``method`` and ``machine`` keep once what many runs share;
a line of the kind ``run`` names its method and its machine. A machine line stands for one period of measuring: a
commit, a processor and the versions of packages.

    {"kind": "task", "task": "trec", "length": "short", "settings": {"batch_size": 32, ...}}
    {"kind": "method", "method": "baseline", "settings": {...}}
    {"kind": "machine", "id": "a92c573-5d1f", "commit": "a92c573...", "processor": "...", ...}
    {"kind": "run", "method": "baseline", "rate": 0.0004, "seed": 0, "role": "final", "machine": "a92c573-5d1f", ...}

Lines are only appended, by one process. Finished runs of a killed suite are kept, and half a last line is dropped with
a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.jsonl import append_lines, read_lines
from benchmarks.machine import ROOT, machine_id


RESULTS = ROOT / "benchmarks" / "results"
SHARED = ("task", "method", "machine")

Result = dict[str, Any]
"""A run: ``task``, ``length``, ``method``, ``rate``, ``seed`` and ``role``; its measurements; and the content of its
shared lines as ``settings`` and ``machine``."""


class ResultsFile:
    """The runs of one task and length.

    Raises:
        ValueError: a line that is not the last one is damaged, or names what no line before it has.
    """

    def __init__(self, folder: Path, task: str, length: str) -> None:
        self.path = folder / f"{task}_{length}.jsonl"
        self.task, self.length = task, length
        self.runs: list[Result] = []
        self._shared: dict[tuple[str, str], dict[str, Any]] = {}
        if self.path.exists():
            self._read()

    def require_same(self, method: str, settings: dict[str, Any]) -> None:
        """Check the settings of a run that is to be added.

        Raises:
            ValueError: the file has other settings of the task or of the method.
        """
        for key, content in self._lines_of(method, settings).items():
            if self._shared.get(key, content) != content:
                raise ValueError(f"{self.path} has {key[1] or self.task!r} in another configuration.")

    def append(self, result: Result) -> None:
        """Add a run, and lines for its task, its method and its machine if the file does not have them.

        Raises:
            ValueError: the file has other settings of the task or of the method.
        """
        run = {name: value for name, value in result.items() if name not in ("task", "length")}
        settings, machine = run.pop("settings"), run.pop("machine")
        self.require_same(run["method"], settings)
        key = machine_id(machine)
        shared = {**self._lines_of(run["method"], settings), ("machine", key): {"id": key, **machine}}
        new = {name: content for name, content in shared.items() if name not in self._shared}
        lines = [{"kind": kind, **content} for (kind, _), content in new.items()]
        lines.append({"kind": "run", **run, "machine": key})
        append_lines(self.path, lines)
        self._shared |= new
        self.runs.append(result)

    def _lines_of(self, method: str, settings: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            ("task", ""): {"task": self.task, "length": self.length, "settings": settings["task"]},
            ("method", method): {"method": method, "settings": settings["method"]},
        }

    def _read(self) -> None:
        for number, line in enumerate(read_lines(self.path), 1):
            try:
                self._add(line)
            except KeyError as error:
                raise ValueError(f"{self.path}, line {number} names {error}, which no line before it has.") from error

    def _add(self, line: dict[str, Any]) -> None:
        kind = line.pop("kind")
        if kind == "run":
            self.runs.append(self._complete(line))
        elif kind in SHARED:
            name = {"task": "", "method": line.get("method"), "machine": line.get("id")}[kind]
            self._shared[kind, name] = line
        else:
            raise ValueError(
                f"{self.path} has a line of kind {kind!r}, expected one of {', '.join(('run', *SHARED))}."
            )

    def _complete(self, run: dict[str, Any]) -> Result:
        """A run together with the content of the lines that it names."""
        task, method = self._shared["task", ""], self._shared["method", run["method"]]
        machine = {key: value for key, value in self._shared["machine", run["machine"]].items() if key != "id"}
        settings = {"task": task["settings"], "method": method["settings"]}
        return {"task": task["task"], "length": task["length"], **run, "settings": settings, "machine": machine}


def read_results(folder: Path) -> Iterator[ResultsFile]:
    """All files of ``folder``, by task and length."""
    names = (path.stem.rpartition("_") for path in folder.glob("*_*.jsonl"))
    for task, length in sorted((task, length) for task, _, length in names):
        yield ResultsFile(folder, task, length)
