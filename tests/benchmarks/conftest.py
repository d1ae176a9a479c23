"""The tiny task, and the versions for which the accuracy benchmark is made."""

from __future__ import annotations

import pytest

from benchmarks.accuracy import tasks, train_one
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
