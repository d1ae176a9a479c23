"""The host waits for a GPU no more often in a step than in one of Trainer, and sends little more to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from hf_multirate import MultirateConfig
from hf_multirate.optim import adam_drift, loss_decrease
from tests.support.runs import trainer_for
from tests.support.waits import WaitsOfSteps


STEPS, START = 24, 8
"""Steps of a run, and those at its start, with checksums of batches and the first step of each kind."""

SETTINGS: dict[str, Any] = {"max_steps": STEPS, "logging_strategy": "no", "optim": "adamw_torch_fused"}


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are treated as on a GPU, step counts too, which fused optimizers keep there."""
    for module in (adam_drift, loss_decrease):
        monkeypatch.setattr(module, "is_on_host", lambda tensor: False)


def waits(folder: Path, config: MultirateConfig | None, **settings: Any) -> list[Any]:
    callback = WaitsOfSteps()
    trainer_for(folder, config, callbacks=[callback], **SETTINGS | settings).train()
    return callback.steps[START:]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_waits_as_often_as_one_of_trainer(tmp_path: Path, accumulated: int) -> None:
    settings = {"gradient_accumulation_steps": accumulated}
    plain = waits(tmp_path / "plain", None, **settings)
    assert any(plain), "Trainer looks at each loss"
    assert waits(tmp_path / "multirate", MultirateConfig(), **settings) == plain


def test_drift_waits_at_refreshes_and_once_after_them(tmp_path: Path) -> None:
    """A drift factor that adapts needs the products at the step, and drift the step counts."""
    plain = waits(tmp_path / "plain", None)
    config = MultirateConfig.two_rate("last:1", 4, "drift", turns="fixed")
    more = [sum((one - other).values()) for one, other in zip(waits(tmp_path, config), plain, strict=True)]
    assert [number > 0 for number in more] == [True, True, False, False] * 4


class Calls(TorchDispatchMode):
    """How often an operation is called."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


class CallsOfSteps(TrainerCallback):
    """Operations outside of forward and backward in each step: clipping, the optimizer and what is added to it."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._calls = Calls()
        self._calls.__enter__()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._calls.__exit__(None, None, None)
        self.steps.append(self._calls.number)


def calls(folder: Path, config: MultirateConfig | None) -> list[int]:
    callback = CallsOfSteps()
    trainer_for(folder, config, callbacks=[callback], **SETTINGS).train()
    return callback.steps[START:]


def test_the_step_of_the_optimizer_makes_no_more_calls_where_nothing_is_looked_back_at(tmp_path: Path) -> None:
    plain = set(calls(tmp_path / "plain", None))
    config = MultirateConfig.ladder([1, 2, 4], turns="fixed")
    found = calls(tmp_path / "multirate", config)
    assert len(plain) == 1
    # Every second full step looks back for the log.
    assert [number <= max(plain) for number in found] == ([False] + [True] * 7) * 2
