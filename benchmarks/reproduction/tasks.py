"""The tasks: those of the benchmark at equal time with the sizes of these experiments, and those of the paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy import tasks as accuracy_tasks
from benchmarks.accuracy.tasks import Data, Task
from benchmarks.budgets import tasks as budget_tasks
from benchmarks.reproduction import full_scale


VALIDATION_ROWS = 872
"""Phrases for validation, as many as the paper has."""

SGD = {"optim": "sgd", "optim_args": "momentum=0.9"}

_SENTENCES = replace(
    budget_tasks.TASKS["sst2"], name="language_adamw", train_rows=6920, epochs=(("2", 2), ("3", 3), ("5", 5))
)

TASKS = {
    "vision": replace(
        budget_tasks.TASKS["cifar10"], name="vision", train_rows=3000, epochs=(("10", 10), ("20", 20), ("30", 30))
    ),
    "language_adamw": _SENTENCES,
    "language_sgd": replace(_SENTENCES, name="language_sgd", rates=(0.01, 0.02, 0.04), **SGD),
    **full_scale.TASKS,
}
"""A length is named by its number of epochs; the lengths ascend."""


def is_full(task: str) -> bool:
    """Whether a task has the size of the paper."""
    return task in full_scale.TASKS


def load(task: Task, folder: Path | None) -> Data:
    """The rows of ``task``.

    Raises:
        InputError: a package is not installed, or the hub cannot be reached.
    """
    if is_full(task.name):
        return full_scale.load(task)
    if task.name == "vision":
        return accuracy_tasks.load(replace(task, name="cifar10"), folder)
    return accuracy_tasks.load_sst2(Path(folder or ""), task, VALIDATION_ROWS)
