"""What users do around a run of Trainer: rates of layers, averaged weights, retries, folds, copies of a trainer."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import transformers as tf
from accelerate.state import GradientState
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_multirate import MultirateConfig, MultirateTrainer
from tests.support.runs import (
    CONFIG,
    PERIOD,
    assert_same,
    differ,
    example,
    history,
    trainer_for,
    weights,
    without_dropout,
)


STEPS = 2 * PERIOD + 2
LADDER = MultirateConfig.ladder([1, 2, 4], idle="drift")
BFLOAT16 = MultirateConfig.two_rate("last:1", PERIOD, inactive_dtype="bfloat16", idle="drift")


def by_parameter(kind: type[torch.optim.Optimizer], rate: Callable[[str], float], **settings: Any) -> Any:
    """An optimizer with a group for each parameter."""

    def optimizers(model: nn.Module) -> Any:
        groups = [{"params": [p], "lr": rate(name)} for name, p in model.named_parameters()]
        return kind(groups, lr=1e-2, **settings), None

    return optimizers


def layerwise(name: str) -> float:
    """Lower for lower layers, and nothing for the one at the bottom."""
    depth = {f"layer.{i}.": i + 1 for i in range(4)}
    return 2e-3 * next((rate for part, rate in depth.items() if part in name), 0 if "embeddings" in name else 5)


@pytest.mark.parametrize("config", [CONFIG, LADDER])
@pytest.mark.parametrize(("kind", "settings"), [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_a_group_for_each_parameter_is_one_group(tmp_path: Path, config: Any, kind: Any, settings: Any) -> None:
    ends = []
    for optimizers in (
        by_parameter(kind, lambda name: 1e-2, **settings),
        lambda model: (kind(model.parameters(), lr=1e-2, **settings), None),
    ):
        trainer = trainer_for(tmp_path, config, optimizers=optimizers, max_steps=STEPS)
        trainer.train()
        ends.append(weights(trainer))
    assert_same(*ends)


@pytest.mark.parametrize("config", [CONFIG, LADDER, MultirateConfig.two_rate("last:1", PERIOD, "long_step")])
def test_rates_of_layers(tmp_path: Path, config: MultirateConfig) -> None:
    settings: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": PERIOD + 2}
    settings["optimizers"] = by_parameter(torch.optim.AdamW, layerwise)
    ends = []
    for checkpoint in (None, str(tmp_path / f"checkpoint-{PERIOD + 2}")):
        trainer = trainer_for(tmp_path, config, **settings)
        start = weights(trainer)
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(weights(trainer))
    assert_same(*ends)
    names = {name for name, _ in trainer.model.named_parameters()}
    assert differ(start, ends[0]) & names == {name for name in names if layerwise(name)}


class Averaged(MultirateTrainer):
    """Evaluates an exponential moving average of the weights, by an exchange of their data."""

    average: dict[nn.Parameter, Tensor]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        parameters = list(self.model.parameters())
        self.average = {p: self.average[p] if hasattr(self, "average") else p.detach().clone() for p in parameters}
        for p in parameters:
            self.average[p] = self.average[p].lerp(p.detach(), 0.5)
        kept = {p: p.data.clone() for p in parameters}  # not even the same memory afterwards
        for p in parameters:
            p.data = self.average[p]
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            for p in parameters:
                p.data = kept[p]


@pytest.mark.parametrize("config", [CONFIG, LADDER, BFLOAT16])
def test_averaged_weights_are_evaluated_and_training_goes_on_without_them(
    tmp_path: Path, config: MultirateConfig
) -> None:
    rows = example("bert")[1]
    settings = {"max_steps": STEPS, "eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rows}
    ends, losses = [], []
    for kind in (Averaged, MultirateTrainer):
        trainer = trainer_for(tmp_path, config, kind=kind, **settings)
        trainer.train()
        ends.append(weights(trainer))
        losses.append([entry["eval_loss"] for entry in history(trainer) if "eval_loss" in entry])
    assert_same(*ends)
    assert len(losses[0]) == len(losses[1]) == STEPS
    # The first average is that of the first weights alone.
    assert [one == other for one, other in zip(*losses, strict=True)] == [True] + [False] * (STEPS - 1)


class Retries(MultirateTrainer):
    """Runs out of memory behind the forward pass at some steps, and tries the batch again row by row."""

    at: tuple[int, ...] = ()

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.state.global_step in self.at and len(inputs["labels"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        except torch.OutOfMemoryError:
            assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
            model.zero_grad()
            rows = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(len(inputs["labels"]))]
            losses = [super(Retries, self).training_step(model, row, *args, **kwargs) for row in rows]
            for p in model.parameters():
                if p.grad is not None:
                    p.grad /= len(rows)
            return torch.stack(losses).mean()


@pytest.mark.parametrize("config", [CONFIG, LADDER, BFLOAT16])
def test_a_batch_is_tried_again_after_running_out_of_memory(tmp_path: Path, config: MultirateConfig) -> None:
    ends = []
    # Full and fast steps, two of them in a row.
    for at in ((), (0, 1, 2, PERIOD, PERIOD + 3)):
        trainer = trainer_for(tmp_path, config, kind=Retries, optim="sgd", max_steps=STEPS)
        without_dropout(trainer.model)
        trainer.at = at
        trainer.train()
        assert trainer.multirate.applied_steps == STEPS
        ends.append(weights(trainer))
    assert_same(*ends, exact=False)


class Fails(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == PERIOD - 1:
            raise ArithmeticError("enough")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "config", [CONFIG, LADDER, BFLOAT16, MultirateConfig.auto(), MultirateConfig.random_subsets(PERIOD)]
)
def test_folds_leave_nothing_alive(tmp_path: Path, config: MultirateConfig, fails: bool) -> None:
    seen: list[weakref.ref[Any]] = []

    def fold() -> None:
        rows = example("bert")[1]
        settings = {"eval_strategy": "steps", "eval_steps": 3, "eval_dataset": rows, "max_steps": STEPS}
        trainer = trainer_for(tmp_path, config, callbacks=[Fails()] if fails else [], **settings)
        try:
            trainer.train()
        except ArithmeticError:
            assert fails
        trainer.evaluate()
        parts = (trainer, trainer.model, trainer.optimizer.optimizer, trainer.multirate, trainer.callback_handler)
        seen.extend(weakref.ref(part) for part in parts)

    for _ in range(2):
        fold()
    gc.collect()
    assert [found() for found in seen] == [None] * len(seen)


class Assigns(TrainerCallback):
    """Gives the model other parameters, which no optimizer knows."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("at", [1, 2, PERIOD])
@pytest.mark.parametrize("config", [CONFIG, LADDER, MultirateConfig.auto()])
def test_other_parameters_in_training_are_an_error(tmp_path: Path, config: MultirateConfig, at: int) -> None:
    trainer = trainer_for(tmp_path, config, callbacks=[Assigns(at)], max_steps=STEPS)
    with pytest.raises(RuntimeError, match=r"has other parameters in their place.*load_state_dict\(assign=True\)"):
        trainer.train()
    assert trainer.state.global_step == at


@pytest.mark.parametrize("part", ["classifier", "bert.embeddings"])
def test_other_parameters_in_a_part_of_the_model_are_an_error(tmp_path: Path, part: str) -> None:
    class Replaces(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                module = model.get_submodule(part)
                module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)

    trainer = trainer_for(tmp_path, CONFIG, callbacks=[Replaces()], max_steps=STEPS)
    with pytest.raises(RuntimeError, match=r"has other parameters in their place"):
        trainer.train()
    assert trainer.state.global_step == (2 if part == "classifier" else PERIOD)  # the next turn of the part


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda trainer: pickle.loads(pickle.dumps(trainer)),
    "cloudpickle": lambda trainer: cloudpickle.loads(cloudpickle.dumps(trainer)),
    "deepcopy": copy.deepcopy,
}


@pytest.fixture
def no_loader() -> Callable[[], None]:
    """Forget data loaders of earlier runs: Accelerate refers to them weakly, and no trainer could be pickled."""

    def forget() -> None:
        GradientState().__dict__["_dataloader_references_ref"] = [None]

    return forget


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", [CONFIG, MultirateConfig.auto(), MultirateConfig.off()])
def test_a_trainer_is_copied_where_that_of_transformers_is(
    tmp_path: Path, no_loader: Callable[[], None], config: MultirateConfig, way: str, before: bool
) -> None:
    outcomes = []
    for chosen in (None, config):
        trainer = trainer_for(tmp_path, chosen)
        if not before:
            trainer.train()
        no_loader()
        try:
            copied = WAYS[way](trainer)
        except (TypeError, pickle.PicklingError) as error:
            outcomes.append(type(error).__name__)
            continue
        assert_same(weights(copied), weights(trainer))
        if before:  # the copy of one that has trained steps the optimizer of the original, in transformers too
            assert_same(trained_on(copied), trained_on(trainer))
        outcomes.append("copied")
    assert outcomes == [outcomes[0]] * 2
    assert not before or outcomes[1] == "copied"


def trained_on(trainer: Trainer) -> dict[str, Tensor]:
    tf.set_seed(3)
    trainer.train()
    return weights(trainer)
