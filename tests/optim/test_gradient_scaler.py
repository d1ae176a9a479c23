"""A step that a gradient scaler skips moves nothing, drift included, and the cycle waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from transformers import TrainerCallback

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.model.blocks import blocks_of
from tests.support.runs import assert_same, differ, history, phases, trainer_for, weights


STEPS, OVERFLOWS = 10, (0, 2, 5)  # In phases 0, 1 and 3; a full step, the first drift and the last.
PHASES = [0, 0, 1, 1, 2, 3, 3, 0, 1, 2]
OPTIMS = ["adamw_torch_fused", "adamw_torch", "rmsprop"]


class Scaled(MultirateTrainer):
    """Trains as with fp16 on an accelerator; the loss is infinite in some steps."""

    overflows: tuple[int, ...] = OVERFLOWS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accelerator.scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=4)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(model, *args, **kwargs)
        return loss * float("inf") if self.state.global_step in self.overflows else loss


class Weights(TrainerCallback):
    """Parameters before the first step and after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_step_begin(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        if not self.steps:
            self.on_step_end(model=model)

    def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.steps.append({name: value.detach().clone() for name, value in model.named_parameters()})


def scaled(folder: Path, idle: str, optim: str, **settings: Any) -> Any:
    config = MultirateConfig.two_rate("last:1", 4, idle, turns="fixed")
    # Clipping would look at gradients that are still scaled: Trainer unscales them for fp16 only.
    chosen = {"max_steps": STEPS, "max_grad_norm": 0.0, "learning_rate": 1e-3, "optim": optim, **settings}
    return trainer_for(folder, config, kind=Scaled, **chosen)


@pytest.mark.parametrize("idle", ["drift", "long_step"])
@pytest.mark.parametrize("optim", OPTIMS)
def test_skipped_step_moves_nothing(tmp_path: Path, optim: str, idle: str) -> None:
    kept = Weights()
    trainer = scaled(tmp_path, idle, optim, callbacks=[kept])
    trainer.train()
    assert phases(trainer) == PHASES
    assert trainer.multirate.applied_steps == STEPS - len(OVERFLOWS)
    assert trainer.accelerator.scaler.get_scale() < 2.0**10
    fast, slow = (set(trainer.multirate.partition[name]) for name in ("fast", "slow"))
    assert len(kept.steps) == STEPS + 1
    for step in range(STEPS):
        changed = differ(kept.steps[step], kept.steps[step + 1])
        if step in OVERFLOWS:
            assert changed == set()
        else:
            assert changed >= fast
            assert bool(changed & slow) == (idle == "drift" or PHASES[step] == 0)


@pytest.mark.parametrize("optim", OPTIMS)
def test_scale_does_not_matter(tmp_path: Path, optim: str) -> None:
    outcomes = []
    for scale in (2.0**4, 2.0**10):
        trainer = scaled(tmp_path, "drift", optim)
        trainer.overflows = ()
        trainer.accelerator.scaler = GradScaler("cpu", init_scale=scale)
        trainer.train()
        assert phases(trainer) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        outcomes.append(weights(trainer))
    # Powers of two: scaling is exact.
    assert_same(*outcomes)


@pytest.mark.parametrize("optim", OPTIMS)
def test_resumed_after_skipped_steps(tmp_path: Path, optim: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = scaled(tmp_path / "whole", "drift", optim, **saving)
    whole.train()
    for step in (2, 4, 6):  # The third of them is behind all three overflows.
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        skipped = json.loads((checkpoint / "multirate.json").read_text())["skipped_steps"]
        assert skipped == sum(overflow < step for overflow in OVERFLOWS)
        trainer = scaled(tmp_path / "resumed", "drift", optim, **saving)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert phases(trainer) == PHASES
        assert_same(weights(trainer), weights(whole))
        last = json.loads((tmp_path / "resumed" / f"checkpoint-{STEPS}" / "multirate.json").read_text())
        assert last["skipped_steps"] == len(OVERFLOWS)
        assert len(history(trainer)) == STEPS
    # A run from the start forgets what the resumed one had skipped.
    trainer.train()
    assert phases(trainer) == PHASES


def test_a_fused_optimizer_without_gradients_takes_its_step_beside_another_one() -> None:
    """The scaler gives it the number 0 instead of a tensor."""
    model, other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    second, scaler = torch.optim.AdamW(other.parameters(), fused=True), GradScaler("cpu")
    with Multirate(MultirateConfig.two_rate("^1", 2)).attach(model, optimizer) as multirate:
        scaler.scale(other(torch.ones(1, 2)).sum()).backward()
        multirate.begin_step(0)
        for each in (optimizer, second):
            scaler.step(each)
        scaler.update()
        assert multirate.applied_steps == 0


def test_a_step_that_is_taken_again_is_logged_with_its_own_scale() -> None:
    decreases = []
    for factors in ([1.0, 1.0, 1.0], [1.0, 1.0, float("inf"), 1.0]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), GradScaler("cpu")
        config = MultirateConfig.two_rate("1", 2, turns="fixed", idle="drift")
        with Multirate(config).attach(model, optimizer) as multirate:
            for factor in factors:
                multirate.begin_step(multirate.applied_steps)
                scaler.scale(model(torch.ones(3, 4)).square().sum() * factor).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            assert multirate.applied_steps == 3
            decreases.append(multirate.loss_decrease.take(blocks_of(model)))
    assert decreases[0]["block_0"].decrease != 0.0
    assert decreases[0] == decreases[1]
