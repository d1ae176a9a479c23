"""The tiny task, and the versions for which the accuracy benchmark is made."""

from __future__ import annotations

import pytest

from benchmarks.accuracy import tasks, train_one
from benchmarks.budgets import contenders, kinds, run_one
from benchmarks.budgets import tasks as budget_tasks
from tests.benchmarks.tiny_task import TINY, load
from tests.support.runs import FIVE


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the task ``tiny``."""
    if not FIVE:
        pytest.skip("the benchmark is of transformers 5, whose names of arguments it uses")
    monkeypatch.setitem(tasks.TASKS, "tiny", TINY)
    monkeypatch.setattr(train_one, "load", load)
    train_one._loaded.clear()


@pytest.fixture
def _tiny_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the task ``tiny`` to the benchmark at equal time, with a head start of a few batches."""
    if not FIVE:
        pytest.skip("the benchmark is of transformers 5, whose names of arguments it uses")
    monkeypatch.setitem(budget_tasks.TASKS, "tiny", TINY)
    monkeypatch.setattr(run_one, "load", load)
    monkeypatch.setattr(contenders, "HEAD_START", 4)
    monkeypatch.setattr(kinds, "LIKE", float("inf"))  # steps of a few rows take any time
    run_one._loaded.clear()
