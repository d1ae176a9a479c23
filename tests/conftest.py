"""Every test runs offline on one thread and starts from the same random state."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch


# Read when huggingface_hub is imported, so nothing above may import it.
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> None:
    """Trainer collects garbage in every run; without this most of a run is a search through imported modules."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    from transformers import set_seed

    set_seed(0)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Arguments of transformers 4.57 write settings into the environment, where the next trainer would find them."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Any:
    """Train -> what the package warned of."""

    def train(trainer: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hf_multirate"):
            trainer.train()
        return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("hf_multirate"))

    return train
