"""Runs that evaluate, repeat, start over or end with another model than the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

from tests.support.runs import CONFIG, Watched, assert_same, differ, example, history, phases, trainer_for, weights


def test_evaluation_in_between_changes_nothing(tmp_path: Path) -> None:
    settings = {"eval_dataset": example("resnet")[1], "eval_steps": 1}
    runs = [trainer_for(tmp_path, CONFIG, "resnet", eval_strategy=when, **settings) for when in ("no", "steps")]
    for trainer in runs:
        tf.set_seed(3)
        trainer.train()
    assert_same(weights(runs[1]), weights(runs[0]))
    assert phases(runs[1]) == phases(runs[0]) == [0, 1, 2, 3, 0, 1]
    evaluations = [entry for entry in history(runs[1]) if "eval_loss" in entry]
    assert len(evaluations) == 6
    assert not any("multirate/phase" in entry for entry in evaluations)


@pytest.mark.parametrize("max_steps", [1, 6])
def test_second_train_is_a_new_run(tmp_path: Path, max_steps: int) -> None:
    # SGD without momentum has no state of its own that would go on.
    settings = {"optim": "sgd", "max_steps": max_steps}
    trainer = trainer_for(tmp_path, CONFIG, **settings)
    trainer.train()
    fresh = trainer_for(tmp_path, CONFIG, **settings)
    fresh.model.load_state_dict(weights(trainer))
    for each in (trainer, fresh):
        tf.set_seed(3)
        each.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1][:max_steps]
    assert_same(weights(trainer), weights(fresh))
    assert_same(history(trainer), history(fresh))


def test_model_init_makes_a_new_model(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, model_init=lambda: example("bert")[0])
    first = trainer.model
    outcomes = []
    for _ in range(2):
        trainer.train()
        outcomes.append((weights(trainer), history(trainer)))
    assert trainer.model is not first
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
    assert_same(*outcomes)
    assert differ(weights(trainer), first.state_dict())


class Reseed(TrainerCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        tf.set_seed(5)


class SmallMemory(Watched):
    """Runs out of memory in step ``at`` with batches of four; reads the rows in order."""

    at: int
    left: dict[str, Tensor]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if len(inputs["labels"]) == 4 and self.state.global_step == self.at:
            self.left = weights(self)
            raise RuntimeError("CUDA out of memory.")
        return loss


@pytest.mark.parametrize("at", [0, 1, 2])
def test_smaller_batches_after_running_out_of_memory(tmp_path: Path, at: int) -> None:
    # SGD without momentum has no state that would be left of the first attempt.
    settings = {"kind": SmallMemory, "callbacks": [Reseed()], "optim": "sgd"}
    trainer = trainer_for(tmp_path, CONFIG, per_device_train_batch_size=4, auto_find_batch_size=True, **settings)
    trainer.at = at
    trainer.train()
    smaller = trainer_for(tmp_path, CONFIG, per_device_train_batch_size=3, **settings)
    smaller.model.load_state_dict(trainer.left)
    smaller.train()
    assert trainer.seen[at + 1 :] == smaller.seen
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
    assert_same(weights(trainer), weights(smaller))


def test_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    # The highest loss is called the best so that it is in the middle of the run.
    settings |= {"load_best_model_at_end": True, "greater_is_better": True, "learning_rate": 0.3}
    trainer = trainer_for(tmp_path, CONFIG, eval_dataset=example("bert")[1], **settings)
    trainer.train()
    losses = [entry["eval_loss"] for entry in history(trainer) if "eval_loss" in entry]
    best = losses.index(max(losses)) + 1
    assert best < len(losses) == 6, "the last model is the best: nothing had to be loaded"
    saved = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    assert saved.keys() >= {name for name, _ in trainer.model.named_parameters()}
    assert_same({name: value for name, value in weights(trainer).items() if name in saved}, saved)
