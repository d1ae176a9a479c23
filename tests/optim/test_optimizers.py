"""Every optimizer that transformers names: what the table of the docs says of it is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import is_tensor, nn
from transformers import BertConfig, BertForSequenceClassification, set_seed
from transformers.training_args import OptimizerNames

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups
from tests.support.runs import CONFIG, FIVE, PERIOD, assert_same, phases, trainer_for, weights
from tests.support.tiny import ENCODER


PAGE = Path(__file__).parents[2] / "docs" / "reference" / "optimizers.md"
ROWS = dict(
    re.findall(r"^\| `(\w+)` \| (works.*?|refused|not tried) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
)
REASONS = {"layerwise": "during backward", "lomo": "during backward", "schedule_free": "between train"}
BY_HAND = {"adamw_torch_4bit", "adamw_torch_8bit"}
# Optimizers of other people warn of much that has nothing to do with who uses them.
pytestmark = pytest.mark.filterwarnings("ignore")


def wide() -> nn.Module:
    """Matrices of 4,096 elements: below that bitsandbytes keeps states of 32 bits."""
    set_seed(1)
    return BertForSequenceClassification(BertConfig(**{**ENCODER, "hidden_size": 64, "intermediate_size": 128}))


def trainer_with(folder: Path, name: str, config: MultirateConfig | None = CONFIG) -> Any:
    settings: dict[str, Any] = {"optim": name, "learning_rate": 1e-3, "max_steps": 9}
    if "galore" in name or "apollo" in name:
        settings |= {"optim_target_modules": [".*query.*", ".*dense.*"], "optim_args": "rank=4"}
    return trainer_for(folder, config, model_init=wide, save_strategy="steps", save_steps=6, **settings)


@pytest.mark.skipif(not FIVE, reason="the page is of transformers 5")
def test_every_optimizer_is_on_the_page() -> None:
    assert set(ROWS) == {name.value for name in OptimizerNames}


@pytest.mark.parametrize("name", [name for name, outcome in ROWS.items() if outcome.startswith("works")])
def test_works(tmp_path: Path, name: str) -> None:
    if name in BY_HAND:
        pytest.importorskip("torchao", reason="tried by hand")
    trainer = trainer_with(tmp_path, name)
    start = weights(trainer)
    trainer.train()
    end = weights(trainer)
    assert phases(trainer) == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    moved = {key for key in trainer.multirate.partition["slow"] if not torch.equal(start[key], end[key])}
    assert moved == set(trainer.multirate.partition["slow"])
    kept = [value for state in trainer.optimizer.state.values() for value in state.values() if is_tensor(value)]
    assert any(value.dtype == torch.uint8 for value in kept) is ("8bit" in name)
    if "resumes" in ROWS[name]:
        again = trainer_with(tmp_path, name)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert_same(weights(again), end)


@pytest.mark.parametrize("name", [name for name, outcome in ROWS.items() if outcome == "refused"])
def test_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    reason = next(reason for word, reason in REASONS.items() if word in name)
    with pytest.raises(ValueError, match=reason):
        trainer_with(tmp_path, name).train()


@pytest.mark.parametrize("name", [name for name, outcome in ROWS.items() if outcome == "not tried"])
def test_not_tried_because_plain_training_cannot(tmp_path: Path, name: str) -> None:
    with pytest.raises((ValueError, ImportError, AssertionError)):
        trainer_with(tmp_path, name, None).train()


@pytest.mark.parametrize("idle", ["drift", "long_step"])
def test_muon(idle: str) -> None:
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])
    config = MultirateConfig.two_rate(r"2\.", PERIOD, idle, turns="fixed")
    optimizer = torch.optim.Muon(multirate_parameter_groups(model, config, lr=0.1))
    seen = []
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(2 * PERIOD):
            before = model[0].weight.detach().clone()
            multirate.begin_step(step)
            model(torch.randn(8, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(not torch.equal(model[0].weight, before))
    assert seen == [idle == "drift" or step % PERIOD == 0 for step in range(2 * PERIOD)]


class Counting(torch.optim.SGD):
    """Counts its steps in a tensor of the group, as some optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            group["step"] = torch.tensor(0)

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"].add_(1)
        return super().step(closure)


def test_trying_an_optimizer_leaves_it_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = Counting(model.parameters())
    with Multirate(MultirateConfig.two_rate(r"1\.", 2, turns="fixed", idle="drift")).attach(model, optimizer):
        pass
    assert optimizer.param_groups[0]["step"] == 0
