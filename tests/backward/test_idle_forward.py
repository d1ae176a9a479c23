"""Idle modules in eval mode at fast-only steps: which ones, when, and that nothing is left changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.backward.idle_forward import noise_off
from tests.support.runs import PERIOD, arguments, assert_same, example, trainer_for, weights


CONFIG = MultirateConfig.two_rate("last:1", PERIOD, inactive_forward="eval", turns="fixed", idle="drift")
WATCHED = (
    "bert.embeddings.dropout",
    "bert.encoder.layer.0",
    "bert.encoder.layer.2",
    "bert.encoder.layer.3",
    "dropout",
)


def modes_of(trainer: Any, names: tuple[str, ...]) -> dict[str, list[bool]]:
    """Train, and note the mode of each module at each of its forward passes."""
    seen: dict[str, list[bool]] = {name: [] for name in names}
    for name in names:
        module = trainer.model.get_submodule(name)
        module.register_forward_hook(lambda module, args, output, name=name: seen[name].append(module.training))
    trainer.train()
    return seen


def test_only_modules_idle_as_a_whole_run_in_eval_mode_and_only_at_fast_only_steps(tmp_path: Path) -> None:
    seen = modes_of(trainer_for(tmp_path, CONFIG), WATCHED)
    full = [step % PERIOD == 0 for step in range(6)]
    always = [True] * 6
    assert seen == dict(zip(WATCHED, (full, full, full, always, always), strict=True))


@pytest.mark.parametrize(
    ("mode", "optim", "evaluates"),
    [("train", "adamw_torch", False), (None, "sgd", False), (None, "adamw_torch", True), ("eval", "sgd", True)],
)
def test_by_default_sgd_alone_keeps_every_module_in_training_mode(
    tmp_path: Path, mode: str | None, optim: str, evaluates: bool
) -> None:
    config = MultirateConfig.two_rate("last:1", PERIOD, inactive_forward=mode, turns="fixed", idle="drift")
    seen = modes_of(trainer_for(tmp_path, config, optim=optim), WATCHED)
    assert (seen == dict.fromkeys(WATCHED, [True] * 6)) != evaluates


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_with_activation_checkpointing_too(tmp_path: Path) -> None:
    plain = trainer_for(tmp_path, CONFIG)
    plain.train()
    trainer = trainer_for(tmp_path, CONFIG, gradient_checkpointing=True)
    trainer.train()
    assert_same(weights(trainer), weights(plain))


def test_idle_batch_norm_goes_on_as_in_training() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = MultirateConfig.two_rate(r"2\.", 2, inactive_forward="eval", turns="fixed", idle="drift")
    counted = []
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(4):
            multirate.begin_step(step)
            model.train()  # as Trainer does before each micro-batch
            model(torch.randn(5, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            counted.append(int(model[0].num_batches_tracked))
    assert counted == [1, 2, 3, 4]


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("last", [nn.Identity(), Failing()])
def test_every_module_gets_its_own_mode_back(last: nn.Module) -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), last)).train()
    model[1][0].eval()  # a user's frozen batch norm
    before = {module: module.training for module in model.modules()}
    try:
        with noise_off([model[1]]):
            model(torch.randn(5, 3))
    except KeyboardInterrupt:
        assert isinstance(last, Failing)
    assert {module: module.training for module in model.modules()} == before
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_frozen_modules_between_live_ones_keep_their_mode(tmp_path: Path) -> None:
    """As the base of an adapter: what is above the boundary is trained through, so it keeps its dropout."""

    def only_queries(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("query" in name or "classifier" in name)

    model, rows = example("bert")
    only_queries(model)
    trainer = MultirateTrainer(model=model, args=arguments(tmp_path), train_dataset=rows, multirate=CONFIG)
    seen = modes_of(
        trainer, ("bert.embeddings.dropout", "bert.encoder.layer.2", "bert.encoder.layer.3.output.dropout")
    )
    full = [step % PERIOD == 0 for step in range(6)]
    assert seen["bert.encoder.layer.2"] == full
    assert seen["bert.encoder.layer.3.output.dropout"] == [True] * 6
    assert seen["bert.embeddings.dropout"] == [True] * 6  # frozen all along
