"""The rows of the task that a process works on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.accuracy.tasks import Data, Task


class LoadedRows:
    """Keeps the rows of a task until another is wanted."""

    def __init__(self) -> None:
        self._found: dict[str, Data] = {}

    def of(self, task: Task, folder: Path | None, load: Callable[[Task, Path | None], Data]) -> Data:
        """The rows of ``task``, which ``load`` reads from ``folder`` if they are not there."""
        if task.name not in self._found:
            self.clear()
            self._found[task.name] = load(task, folder)
        return self._found[task.name]

    def clear(self) -> None:
        """Keep nothing."""
        self._found.clear()
