"""Learning rates of rate groups, the head and depth in Trainer: optimizer, schedule, logs and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from hf_multirate import MultirateConfig, MultirateTrainer, MultirateTrainingArguments
from hf_multirate.controller.guards import unwrap_optimizer
from hf_multirate.trainer.arguments import SWITCH_VARIABLE
from tests.support.runs import FIVE, arguments, assert_same, example, history, trainer_for, weights


RATES = {"head_lr_scale": 10.0, "lr_decay": 0.5}
DEPTHS = {"classifier": 10.0, "pooler": 1.0, "layer.3.": 1.0, "layer.2.": 0.5, "layer.1.": 0.25, "layer.0.": 0.125}


def factor_of(name: str) -> float:
    return next((factor for part, factor in DEPTHS.items() if part in name), 0.0625)


def by_hand(folder: Path, **settings: Any) -> Trainer:
    """Standard training with a parameter group for each rate and weight decay."""
    model, rows = example("bert")
    args = arguments(folder, learning_rate=1e-3, weight_decay=0.1, lr_scheduler_type="linear", **settings)
    trainer = Trainer(model, args, train_dataset=rows)
    decayed = set(trainer.get_decay_parameter_names(model))
    groups = [
        {"params": [parameter], "lr": 1e-3 * factor_of(name), "weight_decay": 0.1 if name in decayed else 0.0}
        for name, parameter in model.named_parameters()
    ]
    trainer.optimizer = torch.optim.AdamW(groups, lr=1e-3)
    return trainer


def ours(folder: Path, config: MultirateConfig, **settings: Any) -> MultirateTrainer:
    model, rows = example("bert")
    args = arguments(folder, learning_rate=1e-3, weight_decay=0.1, lr_scheduler_type="linear", **settings)
    return MultirateTrainer(model, args, train_dataset=rows, multirate=config)


def test_standard_training_with_rates_is_the_optimizer_made_by_hand(tmp_path: Path) -> None:
    wanted = by_hand(tmp_path, optim="adamw_torch")
    wanted.train()
    got = ours(tmp_path, MultirateConfig.off(**RATES), optim="adamw_torch")
    got.train()
    for name, value in weights(wanted).items():
        torch.testing.assert_close(weights(got)[name], value, rtol=1e-5, atol=1e-7)
    assert not Path(tmp_path, "multirate_record.json").exists(), "standard training writes no record"


def test_rates_are_those_of_the_optimizer(tmp_path: Path) -> None:
    trainer = ours(tmp_path, MultirateConfig.ladder([1, 2], **RATES), max_steps=4)
    trainer.train()
    optimizer = unwrap_optimizer(trainer.optimizer)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    initial = {names[p]: group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    assert initial == pytest.approx({name: 1e-3 * factor_of(name) for name in names.values()})
    entry = next(entry for entry in history(trainer) if "loss" in entry)
    rate = entry["multirate/learning_rate/part 1"] / 10
    assert not FIVE or rate == pytest.approx(entry["learning_rate"]), "Trainer logs the rate with factor 1"
    assert entry["multirate/learning_rate/part 1"] == pytest.approx(10 * rate)
    assert entry["multirate/lowest_learning_rate/part 1"] == pytest.approx(0.5 * rate)
    assert entry["multirate/learning_rate/part 2"] == pytest.approx(0.25 * rate)
    assert entry["multirate/lowest_learning_rate/part 2"] == pytest.approx(0.0625 * rate)


def test_one_rate_is_not_logged_and_divides_nothing(tmp_path: Path) -> None:
    trainer = ours(tmp_path, MultirateConfig.ladder([1, 2]), max_steps=2)
    trainer.train()
    assert len(unwrap_optimizer(trainer.optimizer).param_groups) == 2
    assert not any("learning_rate/" in key for entry in history(trainer) for key in entry)


@pytest.mark.parametrize("idle", ["freeze", "long_step", "drift"])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_resumed_is_uninterrupted(tmp_path: Path, idle: str, optim: str) -> None:
    config = MultirateConfig.ladder([1, 3], idle, **RATES)
    settings = {"optim": optim, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole, resumed = ours(tmp_path / "a", config, **settings), ours(tmp_path / "b", config, **settings)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_same(weights(resumed), weights(whole))


def test_resumed_with_other_parameter_groups_is_an_error_that_says_so(tmp_path: Path) -> None:
    ours(tmp_path, MultirateConfig.ladder([1, 3]), max_steps=2, save_strategy="steps", save_steps=2).train()
    other = ours(tmp_path, MultirateConfig.ladder([1, 3], **RATES), max_steps=4)
    with pytest.raises(ValueError, match=r"checkpoint-2 has other parameter groups.*resume with the configuration"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("mode", ["off", "on", "auto"])
def test_command_line(tmp_path: Path, mode: str) -> None:
    rates = {"multirate_head_lr_scale": 10, "multirate_lr_decay": 0.5}
    args = MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], multirate=mode, **rates)
    config = args.to_multirate_config()
    assert (config.head_lr_scale, config.lr_decay) == (10.0, 0.5)
    assert config.is_standard_training is (mode == "off")


@pytest.mark.parametrize("by_arguments", [False, True])
def test_the_switch_keeps_the_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_arguments: bool) -> None:
    monkeypatch.setenv(SWITCH_VARIABLE, "off")
    model, rows = example("bert")
    args = MultirateTrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], max_steps=1, multirate_head_lr_scale=10 if by_arguments else None
    )
    given = None if by_arguments else MultirateConfig.ladder([1, 2], head_lr_scale=10)
    trainer = MultirateTrainer(model, args, train_dataset=rows, multirate=given)
    assert trainer.multirate.config == MultirateConfig.off(head_lr_scale=10)


def test_an_optimizer_that_is_brought_must_have_the_groups(tmp_path: Path) -> None:
    model, rows = example("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config = MultirateConfig.ladder([1, 2], **RATES)
    trainer = MultirateTrainer(
        model, arguments(tmp_path), train_dataset=rows, multirate=config, optimizers=(optimizer, None)
    )
    with pytest.raises(ValueError, match="multirate_parameter_groups"):
        trainer.train()


def test_a_model_without_a_head_is_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head_lr_scale is 10, but the head is unknown"):
        trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 2, head_lr_scale=10), "gpt2-lm")


def test_described(tmp_path: Path) -> None:
    described = ours(tmp_path, MultirateConfig.ladder([1, 2], **RATES)).multirate.describe()
    assert "learning rate of the groups: part 1 x0.5 to x10, part 2 x0.0625 to x0.25\n" in described
    one = ours(tmp_path, MultirateConfig.two_rate("head", 2, head_lr_scale=3.0)).multirate.describe()
    assert "learning rate of the groups: fast x3, slow x1\n" in one
    assert "learning rate" not in ours(tmp_path, MultirateConfig()).multirate.describe()
