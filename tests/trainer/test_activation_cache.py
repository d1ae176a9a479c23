"""The activation cache in Trainer: evaluation, resume, accumulation, logs, and the model after training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import Trainer, TrainerCallback

from hf_multirate import MultirateConfig, MultirateTrainingArguments
from hf_multirate.trainer.trainer import CACHE_FOLDER
from tests.support.runs import FIVE, assert_same, example, history, trainer_for, weights, without_dropout


NEVER = MultirateConfig.two_rate("last:1", "never")
EPOCHS = {"max_steps": -1, "num_train_epochs": 3}


def cached(cache: str = "memory", **settings: Any) -> MultirateConfig:
    return MultirateConfig.two_rate("last:1", "never", activation_cache=cache, activation_cache_gb=0.05, **settings)


def run(folder: Path, config: MultirateConfig, resume: str | None = None, **settings: Any) -> Trainer:
    trainer = trainer_for(folder, config, **(EPOCHS | settings))
    without_dropout(trainer.model)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def without_counts(trainer: Trainer) -> list[dict[str, float]]:
    return [
        {key: value for key, value in entry.items() if "activation_cache" not in key} for entry in history(trainer)
    ]


def assert_plain(trainer: Trainer) -> None:
    for module in trainer.model.modules():
        assert module is trainer.model or "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_training_and_evaluation_are_the_same_bit_for_bit(tmp_path: Path, cache: str) -> None:
    settings = {"eval_dataset": example("bert")[1], "eval_strategy": "epoch", "per_device_eval_batch_size": 2}
    plain = run(tmp_path / "plain", NEVER, **settings)
    ours = run(tmp_path / "cache", cached(cache), **settings)
    assert without_counts(ours) == without_counts(plain)
    assert_same(weights(ours), weights(plain))
    last = [entry for entry in ours.state.log_history if "multirate/activation_cache/hits" in entry][-1]
    # Each of twelve rows ran once: at two epochs of training and three evaluations it was kept.
    assert last["multirate/activation_cache/misses"] == 12
    assert last["multirate/activation_cache/rows"] == 12
    assert last["multirate/activation_cache/hits"] == 2 * 12 + 2 * 12
    summary = ours._record().summary["activation_cache"]
    assert summary["hits"] == 2 * 12 + 3 * 12
    assert summary["bytes"] > 0
    assert plain._record().summary["activation_cache"] is None
    assert (tmp_path / "cache" / CACHE_FOLDER).exists() == (cache == "disk")
    assert_plain(ours)


def test_a_cache_that_never_hits_changes_nothing(tmp_path: Path) -> None:
    one_epoch = {"num_train_epochs": 1}
    plain, ours = run(tmp_path / "plain", NEVER, **one_epoch), run(tmp_path / "cache", cached(), **one_epoch)
    assert ours.multirate.activation_cache.summary()["hits"] == 0
    assert without_counts(ours) == without_counts(plain)
    assert_same(weights(ours), weights(plain))


def test_accumulation(tmp_path: Path) -> None:
    settings = {"gradient_accumulation_steps": 3}
    plain, ours = run(tmp_path / "plain", NEVER, **settings), run(tmp_path / "cache", cached(), **settings)
    assert ours.multirate.activation_cache.summary()["hits"] == 24
    assert_same(weights(ours), weights(plain))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_resumed_run_is_that_of_one_piece(tmp_path: Path, cache: str) -> None:
    """It begins with an empty cache in memory, and a full one on disk."""
    saved = {"save_strategy": "steps", "save_steps": 8}
    whole = run(tmp_path, cached(cache), **saved)
    again = run(tmp_path, cached(cache), resume=str(tmp_path / "checkpoint-8"), **saved)
    if FIVE:
        assert_same(weights(again), weights(whole))
    else:  # Trainer 4.57 itself gives the rows of a resumed epoch another order
        plain = run(tmp_path, NEVER, resume=str(tmp_path / "checkpoint-8"), **saved)
        assert_same(weights(again), weights(plain))
    counts = again.multirate.activation_cache.summary()
    assert counts["hits"] + counts["misses"] == 2 * 10
    assert (counts["misses"] == 0) == (cache == "disk")


def test_saved_models_are_plain(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", NEVER, save_strategy="epoch")
    ours = run(tmp_path / "cache", cached(), save_strategy="epoch")
    files = [
        {path.name for path in (folder / "checkpoint-18").iterdir()}
        for folder in (tmp_path / "plain", tmp_path / "cache")
    ]
    assert files[0] == files[1]
    read = type(ours.model).from_pretrained(tmp_path / "cache" / "checkpoint-18")
    assert_same(read.state_dict(), plain.model.state_dict())


class Stops(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise ArithmeticError


def test_an_error_leaves_a_plain_model(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, cached(), callbacks=[Stops()], **EPOCHS)
    with pytest.raises(ArithmeticError):
        trainer.train()
    assert_plain(trainer)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_frozen_by_hand_in_standard_training(tmp_path: Path) -> None:
    def freeze(config: MultirateConfig, folder: Path) -> Trainer:
        trainer = trainer_for(folder, config, **EPOCHS)
        for name, parameter in trainer.model.named_parameters():
            parameter.requires_grad_("layer.3" in name or "classifier" in name)
        without_dropout(trainer.model)
        trainer.train()
        return trainer

    plain = freeze(MultirateConfig.off(), tmp_path / "plain")
    ours = freeze(MultirateConfig.off(activation_cache="memory"), tmp_path / "cache")
    assert ours.multirate.activation_cache.summary()["hits"] == 24
    assert_same(weights(ours), weights(plain))
    assert any("multirate/activation_cache/hits" in entry for entry in ours.state.log_history)


def test_refused_before_training(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 5, activation_cache="memory"))
    with pytest.raises(ValueError, match="period='never'"):
        trainer.train()
    assert trainer.state.global_step == 0
    other = tmp_path / CACHE_FOLDER
    run(tmp_path, cached("disk"))
    assert other.is_dir()
    trainer = trainer_for(tmp_path, cached("disk"))
    with torch.no_grad():
        trainer.model.bert.embeddings.word_embeddings.weight.add_(1.0)
    with pytest.raises(ValueError, match="belongs to another model"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_refused_with_compilation(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match=r"does not work with torch\.compile.*torch_compile=False"):
        trainer_for(tmp_path, cached(), torch_compile=True, torch_compile_backend="eager")


def test_a_push_to_the_hub_leaves_out_the_rows(tmp_path: Path) -> None:
    """They are made from the training data."""
    run(tmp_path, cached("disk"), num_train_epochs=1)
    files = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert any("data.mdb" in file for file in files)
    uploaded = filter_repo_objects(files, ignore_patterns=["_*", "checkpoint-*"])  # those of Trainer.push_to_hub
    assert not [file for file in uploaded if "mdb" in file]


def test_command_line(tmp_path: Path) -> None:
    given = {"multirate_fast": "last:1", "multirate_period": "never", "multirate_activation_cache": "disk"}
    more = {"multirate_activation_cache_gb": 2.5, "multirate_activation_cache_dir": str(tmp_path / "rows")}
    arguments = MultirateTrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **given, **more)
    config = arguments.to_multirate_config()
    assert (config.activation_cache, config.activation_cache_gb) == ("disk", 2.5)
    assert config.activation_cache_dir == str(tmp_path / "rows")
    assert MultirateConfig.from_dict(json.loads(config.to_json())) == config


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps outputs without dropout, but inactive_forward is 'train'"):
        cached(inactive_forward="train")
    with pytest.raises(ValueError, match="precision of the run, but inactive_dtype is 'bfloat16'"):
        cached(inactive_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"activation_cache_dir is '.*', but activation_cache is 'memory'"):
        cached(activation_cache_dir=str(tmp_path))
