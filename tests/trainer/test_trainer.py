"""What MultirateTrainer does at which step, and that it leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from hf_multirate import MultirateConfig, MultirateTrainer
from hf_multirate.controller.step_timer import StepTimer
from tests.support.runs import (
    CONFIG,
    FIVE,
    PERIOD,
    Watched,
    arguments,
    assert_same,
    example,
    history,
    phases,
    trainer_for,
)


# Family and the last module below the cut of its preset.
BOUNDARIES = [
    ("bert", "bert.encoder.layer.2"),
    ("gpt2-lm", "transformer.h.2"),
    ("resnet", "resnet.encoder.stages.1"),
]


class Broken(MultirateTrainer):
    """Fails in the loss of step ``at``."""

    at: int

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        if self.state.global_step == self.at:
            raise KeyError("in the loss")
        return loss


class Gradients(TrainerCallback):
    """Copies, at every optimizer step, the gradients that are there."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.steps.append(present(model))


def present(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def fixtures_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All that a run could forget to put back."""
    modules = dict(model.named_modules())
    return {
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "forward hooks": {name: list(module._forward_hooks.values()) for name, module in modules.items()},
        "pre hooks": {name: list(module._forward_pre_hooks.values()) for name, module in modules.items()},
        "step pre hooks": list(optimizer._optimizer_step_pre_hooks.values()),
        "step post hooks": list(optimizer._optimizer_step_post_hooks.values()),
        "state keys": {frozenset(state) for state in optimizer.state.values()},
    }


@pytest.mark.parametrize("at", [None, 0, 1, 2])
def test_left_as_found(tmp_path: Path, at: int | None) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def user_hook(*_: Any) -> None: ...

    def prepared(model: nn.Module) -> tuple[torch.optim.Optimizer, None]:
        model.bert.embeddings.position_embeddings.weight.requires_grad_(False)
        model.classifier.bias.requires_grad_(False)
        model.bert.encoder.layer[1].register_forward_hook(user_hook)
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-2))
        optimizers[0].register_step_post_hook(user_hook)
        return optimizers[0], None

    trainer = trainer_for(tmp_path, CONFIG, kind=Broken, optimizers=prepared)
    trainer.at = -1 if at is None else at
    before = fixtures_of(trainer.model, optimizers[0])
    assert len(before["step post hooks"]) == 1
    if at is None:
        trainer.train()
        before["state keys"] = {frozenset({"step", "exp_avg", "exp_avg_sq"})}
    else:
        with pytest.raises(KeyError, match="in the loss"):
            trainer.train()
        before["state keys"] = {frozenset({"step", "exp_avg", "exp_avg_sq"})} if at else set()
    assert fixtures_of(trainer.model, optimizers[0]) == before
    assert not trainer.multirate.attached
    # After an error the same trainer starts anew.
    trainer.at = -1
    trainer.train()
    assert trainer.multirate.applied_steps == 6


def test_training_step_by_itself_is_plain(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG)
    trainer.train()
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert present(trainer.model).keys() == {name for name, _ in trainer.model.named_parameters()}
    assert not trainer.multirate.attached


def test_rate_groups_are_checked_when_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"must be a MultirateConfig.*got 'last:1'"):
        MultirateTrainer(example("bert")[0], arguments(tmp_path), multirate="last:1")
    with pytest.raises(ValueError, match="'fast' matches no trainable parameter"):
        trainer_for(tmp_path, MultirateConfig.two_rate("no_such_layer", turns="fixed", idle="drift"))


def test_modes_are_those_of_plain_training(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_dataset": example("resnet")[1]}
    modes = []
    for config in (None, CONFIG):
        trainer = trainer_for(tmp_path, config, "resnet", eval_steps=2, **settings)
        trainer.train()
        modes.append({name: module.training for name, module in trainer.model.named_modules()})
    assert modes[0] == modes[1]


def test_phase_is_constant_over_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    trainer = trainer_for(tmp_path, CONFIG, kind=Watched, gradient_accumulation_steps=4)
    monkeypatch.setattr(StepTimer, "start", lambda _: begun.append(trainer.state.global_step))
    trainer.train()
    assert begun == list(range(6)), "a step is timed from its first micro-batch"
    # Six micro-batches per epoch make windows of four and two.
    assert [step for step, _ in trainer.seen] == [0] * 4 + [1] * 2 + [2] * 4 + [3] * 2 + [4] * 4 + [5] * 2
    everything = frozenset(name for name, _ in trainer.model.named_parameters())
    fast = frozenset(trainer.multirate.partition["fast"])
    assert fast < everything
    assert [live for _, live in trainer.seen] == [fast if step % PERIOD else everything for step, _ in trainer.seen]


@pytest.mark.parametrize(("family", "below"), BOUNDARIES)
def test_nothing_is_recorded_below_the_boundary(tmp_path: Path, family: str, below: str) -> None:
    gradients, recorded = Gradients(), []
    trainer = trainer_for(tmp_path, CONFIG, family, kind=Watched, callbacks=[gradients])

    def note(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        hidden = output[0] if isinstance(output, tuple) else output
        recorded.append(hidden.grad_fn is not None)

    trainer.model.get_submodule(below).register_forward_hook(note)
    trainer.train()
    full = [step % PERIOD == 0 for step in range(6)]
    assert recorded == full
    fast = set(trainer.multirate.partition["fast"])
    everything = {name for name, _ in trainer.model.named_parameters()}
    assert [set(names) for names in gradients.steps] == [everything if refresh else fast for refresh in full]
    bytes_full, bytes_fast = trainer.saved[0], trainer.saved[1]
    assert trainer.saved == [bytes_full if refresh else bytes_fast for refresh in full]
    assert 0 < bytes_fast < 0.5 * bytes_full


@pytest.mark.parametrize("limit", [0.0, 1e-3, 0.5, 1e3])
def test_clipping_is_trainers_of_the_gradients_present(tmp_path: Path, limit: float) -> None:
    if not (FIVE or limit):
        pytest.skip("4.57 takes no norm where it does not clip")
    clipped, unclipped = Gradients(), []
    trainer = trainer_for(tmp_path, CONFIG, callbacks=[clipped], max_grad_norm=limit)
    clip = trainer.accelerator.clip_grad_norm_

    def spy(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        unclipped.append(present(trainer.model))
        return clip(parameters, *args, **kwargs)

    trainer.accelerator.clip_grad_norm_ = spy
    trainer.train()
    fast = set(trainer.multirate.partition["fast"])
    assert len(clipped.steps) == 6
    assert len(unclipped) == 6
    for step, gradients in enumerate(clipped.steps):
        assert (gradients.keys() == fast) == (step % PERIOD > 0)
        copies = {name: nn.Parameter(value) for name, value in unclipped[step].items()}
        for copy in copies.values():
            copy.grad = copy.detach().clone()
        norm = nn.utils.clip_grad_norm_(copies.values(), limit or float("inf"))
        assert_same({name: copy.grad for name, copy in copies.items()}, gradients)
        assert history(trainer)[step]["grad_norm"] == norm.item()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]


def test_log_names_the_phase_of_its_step(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, logging_steps=2, max_steps=8)
    trainer.train()
    assert phases(trainer) == [1, 3, 1, 3]
    plain = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 1, turns="fixed", idle="drift"))
    plain.train()
    assert not any("phase" in key for entry in plain.state.log_history for key in entry)


def test_replicas_in_one_process_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(NotImplementedError, match="DataParallel on 2 devices"):
        trainer_for(tmp_path, CONFIG)
    trainer_for(tmp_path, MultirateConfig.two_rate(period=1, turns="fixed", idle="drift"))


def test_processes_without_a_wrapper_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(tmp_path, CONFIG)
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 2))
    with pytest.raises(NotImplementedError, match="wrapped neither by DistributedDataParallel nor by FSDP2"):
        trainer.train()
