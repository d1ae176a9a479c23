"""A head start in Trainer: training goes on as without it, but for the weights of the head."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from hf_multirate import MultirateConfig, MultirateTrainer, MultirateTrainingArguments, head_start
from hf_multirate.reporting.comparison import notes, training_seconds
from hf_multirate.reporting.run_record import FILE, read_record
from tests.support.runs import (
    CONFIG,
    DEFAULTS,
    arguments,
    assert_same,
    differ,
    example,
    history,
    trainer_for,
    weights,
)


HEAD = {"classifier.weight", "classifier.bias"}
SETTINGS: dict[str, Any] = {"head_start": 4, "head_start_steps": 20, "head_start_lr": 1e-2}
CONFIGS: dict[str, Callable[..., MultirateConfig]] = {
    "off": MultirateConfig.off,
    "ladder": MultirateConfig.ladder,
    "auto": MultirateConfig.auto,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


class Watching(MultirateTrainer):
    """Notes the inputs of each step, the random state and the weights before it, and the modes and hooks there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inputs: list[dict[str, Tensor]] = []
        self.random: list[Any] = []
        self.first: dict[str, Tensor] = {}
        self.marks: list[Any] = []

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if not self.inputs:
            self.first = weights(self)
        self.inputs.append({key: value.clone() for key, value in inputs.items()})
        self.random.append((torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()))
        self.marks.append(
            [(sorted(vars(module)), module.training, len(module._forward_hooks)) for module in model.modules()]
        )
        return super().training_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("way", ["function", "method"])
def test_a_loss_of_the_users_may_divide_by_the_number_of_items(tmp_path: Path, way: str) -> None:
    def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    class Summed(MultirateTrainer):
        def compute_loss(
            self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            outputs = model(**inputs)
            loss = loss_of(outputs, inputs["labels"], num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    class Accepting(Summed):
        """A model that accepts such arguments gets the number."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = True

    own: dict[str, Any] = {"compute_loss_func": loss_of} if way == "function" else {"kind": Accepting}
    trainer = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS), **own)
    trainer.train()
    (values,) = [entry for entry in trainer.state.log_history if "multirate/head_start/loss_before" in entry]
    plain = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS))
    plain.train()
    (expected,) = [entry for entry in plain.state.log_history if "multirate/head_start/loss_before" in entry]
    assert values["multirate/head_start/loss_before"] == pytest.approx(
        expected["multirate/head_start/loss_before"], abs=1e-5
    )


def pair(folder: Path, name: str, **settings: Any) -> tuple[Watching, Watching]:
    """Two trainers that have trained, without and with a head start."""
    trainers = []
    for given in ({}, SETTINGS):
        trainer: Any = trainer_for(folder / str(len(trainers)), CONFIGS[name](**given), kind=Watching, **settings)
        trainer.train()
        trainers.append(trainer)
    return trainers[0], trainers[1]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "reentrant": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "evaluation at the start": {"eval_on_start": True, "eval_strategy": "steps", "eval_dataset": example("bert")[1]},
    "two epochs": {"max_steps": -1, "num_train_epochs": 2},
    "more batches than the data have": {"per_device_train_batch_size": 4},
    "workers": {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["off", "ladder"])
def test_only_the_head_differs_at_the_first_step(tmp_path: Path, name: str, variant: str) -> None:
    without, with_it = pair(tmp_path, name, **VARIANTS[variant])
    assert_same(with_it.inputs, without.inputs)
    assert_same(with_it.random, without.random)
    assert with_it.marks == without.marks
    assert differ(with_it.first, without.first) == HEAD
    assert [entry["epoch"] for entry in with_it.state.log_history if "loss" in entry] == [
        entry["epoch"] for entry in without.state.log_history if "loss" in entry
    ]
    assert sum("multirate/head_start/steps" in entry for entry in with_it.state.log_history) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_head_start_on_the_first_batches(tmp_path: Path, name: str) -> None:
    trainer: Any = trainer_for(tmp_path, CONFIGS[name](**SETTINGS), kind=Watching)
    trainer.train()
    model, _ = example("bert")
    result = head_start(model, trainer.inputs[:4], steps=20, learning_rate=1e-2)
    assert_same(trainer.first, dict(model.state_dict()))
    logged = trainer.state.log_history[0]
    assert logged["multirate/head_start/loss_before"] == pytest.approx(result.loss_before, abs=1e-5)
    assert logged["multirate/head_start/loss_after"] == pytest.approx(result.loss_after, abs=1e-5)
    assert (logged["multirate/head_start/batches"], logged["multirate/head_start/steps"]) == (4, 20)
    assert logged["multirate/head_start/learning_rate"] == 1e-2
    assert logged["step"] == 0


def test_after_it_the_baseline_is_trainer_bit_for_bit(tmp_path: Path) -> None:
    ours: Any = trainer_for(tmp_path / "ours", MultirateConfig.off(**SETTINGS), kind=Watching)
    ours.train()
    plain = trainer_for(tmp_path / "plain", None)
    plain.model.load_state_dict(ours.first)
    plain.train()
    assert_same(weights(ours), weights(plain))
    assert history(ours)[1:] == history(plain)


@pytest.mark.parametrize("name", CONFIGS)
def test_zero_batches_change_nothing(tmp_path: Path, name: str) -> None:
    ends = []
    for given in ({}, {"head_start": 0, "head_start_steps": 3, "head_start_lr": 1.0}):
        trainer = trainer_for(tmp_path / str(len(ends)), CONFIGS[name](**given))
        trainer.train()
        ends.append((weights(trainer), history(trainer)))
    assert_same(ends[0], ends[1])


def test_it_is_skipped_on_resume_and_in_a_second_run(tmp_path: Path) -> None:
    def trainer() -> Any:
        return trainer_for(tmp_path, MultirateConfig.ladder(**SETTINGS), save_strategy="steps", save_steps=3)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(resumed), weights(whole))
    assert history(resumed) == history(whole)
    before = len(whole.state.log_history)
    whole.train()
    assert not any("multirate/head_start/steps" in entry for entry in whole.state.log_history)
    assert before > 1
    resumed.train()
    assert not any("multirate/head_start/steps" in entry for entry in resumed.state.log_history)


def test_a_new_model_gets_its_own(tmp_path: Path) -> None:
    made: list[nn.Module] = []

    def model_init() -> nn.Module:
        made.append(example("bert")[0])
        return made[-1]

    trainer = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS), model_init=model_init)
    for _ in range(2):
        trainer.train()
        assert "multirate/head_start/steps" in trainer.state.log_history[0]
    assert len(made) == 3


class Halved(MultirateTrainer):
    """Has a loss of its own."""

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, 2 - labels) / 2
        return (loss, outputs) if return_outputs else loss


def test_the_loss_is_that_of_the_trainer(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS), kind=Halved)
    trainer.train()
    model, rows = example("bert")
    model.eval()
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    labels = batch.pop("labels")
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(**batch).logits, 2 - labels) / 2
    found = trainer.state.log_history[0]["multirate/head_start/loss_before"]
    assert found == pytest.approx(float(loss), rel=0.05)
    assert found < 0.7  # without the half it is 1.1


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft(tmp_path: Path) -> None:
    model, rows = example("bert")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    trainer = Watching(wrapped, arguments(tmp_path), train_dataset=rows, multirate=MultirateConfig.ladder(**SETTINGS))
    trainer.train()
    assert {name.rpartition("classifier.")[2] for name in differ(trainer.first, before)} == {
        "modules_to_save.default.weight",
        "modules_to_save.default.bias",
    }


def test_compiled(tmp_path: Path) -> None:
    compiled: Any = trainer_for(
        tmp_path, MultirateConfig.off(**SETTINGS), kind=Watching, torch_compile=True, torch_compile_backend="eager"
    )
    compiled.train()
    plain: Any = trainer_for(tmp_path / "plain", MultirateConfig.off(**SETTINGS), kind=Watching)
    plain.train()
    assert_same(compiled.first, plain.first)


def test_the_record_counts_its_seconds_and_has_its_values(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.ladder(**SETTINGS), save_strategy="steps", save_steps=3)
    trainer.train()
    record = read_record(tmp_path)
    values = record.summary["head_start"]
    assert set(values) == {"batches", "steps", "learning_rate", "loss_before", "loss_after", "seconds"}
    assert record.summary["seconds_aside"]["head_start"] == pytest.approx(values["seconds"], abs=1e-3)
    steps = sum(record.steps["seconds"])
    assert record.summary["seconds"] >= steps + values["seconds"] - 1e-3
    assert record.logs[-1]["seconds_of_head_start"] == record.summary["seconds_aside"]["head_start"]
    trainer_for(tmp_path, MultirateConfig.ladder(**SETTINGS)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-3")
    )
    again = read_record(tmp_path).summary
    assert again["head_start"] == values
    assert again["seconds_aside"]["head_start"] == record.summary["seconds_aside"]["head_start"]
    trainer_for(tmp_path / "none", CONFIG).train()
    assert json.loads((tmp_path / "none" / FILE).read_text())["summary"]["head_start"] is None


def test_the_card_and_the_comparison_name_it(tmp_path: Path) -> None:
    for name, config in (("run", MultirateConfig.ladder(**SETTINGS)), ("baseline", MultirateConfig.off())):
        trainer = trainer_for(tmp_path / name, config, multirate_record=True)
        trainer.train()
        trainer.create_model_card()
    assert "| steps of the head before training | 20, on 4 batches |" in (tmp_path / "run" / "README.md").read_text()
    run, baseline = (read_record(tmp_path / name) for name in ("run", "baseline"))
    assert notes(run, baseline) == ["batches of a head start: 4 and 0"]
    assert notes(run, run) == []
    run.config |= {"head_lr_scale": 10.0, "lr_decay": 0.5, "head_start_lr": 0.1}
    rates = ["head_lr_scale: 10.0 and 1.0", "lr_decay: 0.5 and 1.0"]
    assert notes(run, baseline) == [*rates, "batches of a head start: 4 and 0"]
    baseline.config["head_start"] = 4
    assert notes(run, baseline)[2:] == [
        "steps of a head start: 20 and 150",
        "learning rate of a head start: 0.1 and None",
    ]
    assert training_seconds(run) >= run.summary["head_start"]["seconds"]


def test_standard_training_with_it_leaves_no_record_and_no_files_in_checkpoints(tmp_path: Path) -> None:
    trainer_for(tmp_path, MultirateConfig.off(**SETTINGS), save_strategy="steps", save_steps=3).train()
    assert not [path.name for path in tmp_path.rglob("multirate*")]


def test_arguments(tmp_path: Path) -> None:
    def config(**settings: Any) -> MultirateConfig:
        return MultirateTrainingArguments(str(tmp_path), report_to=[], **settings).to_multirate_config()

    given = {f"multirate_{name}": value for name, value in SETTINGS.items()}
    assert config(**given) == MultirateConfig(**SETTINGS)
    assert config(**given, multirate="off") == MultirateConfig.off(**SETTINGS)
    assert config(**given, multirate="auto") == MultirateConfig.auto(**SETTINGS)
    assert config(**given, multirate_fast="head") == MultirateConfig.two_rate("head", **SETTINGS)
    for name in ("steps", "lr"):
        with pytest.raises(ValueError, match=f"multirate_head_start_{name} is 3.*Set multirate_head_start"):
            config(**{f"multirate_head_start_{name}": 3})
    with pytest.raises(ValueError, match="multirate_head_start must be at least 0, got -1"):
        config(multirate_head_start=-1)


def test_switched_off_by_the_environment_the_baseline_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MULTIRATE", "off")
    trainer = trainer_for(tmp_path, MultirateConfig.ladder(**SETTINGS))
    assert trainer.multirate.config == MultirateConfig.off(**SETTINGS)
    model, rows = example("bert")
    fields = {**DEFAULTS, **{f"multirate_{name}": value for name, value in SETTINGS.items()}}
    other = MultirateTrainer(model, MultirateTrainingArguments(str(tmp_path), **fields), train_dataset=rows)
    assert other.multirate.config == MultirateConfig.off(**SETTINGS)


@pytest.mark.parametrize("name", ["off", "ladder"])
def test_a_model_without_a_head_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"needs a head, but the head of GPT2LMHeadModel is tied.*Set head_start=0"):
        trainer_for(tmp_path, CONFIGS[name](**SETTINGS), "gpt2-lm")


def test_a_frozen_head_is_refused_when_training_begins(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS))
    trainer.model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="all its parameters are frozen"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_head_of_a_language_model_is_warned_of(tmp_path: Path, warnings_of: Callable[..., str]) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS), "llama-lm")
    assert "the head of LlamaForCausalLM is that of a language model" in warnings_of(trainer)


def test_a_stream_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(example("bert")[1])

    model, _ = example("bert")
    trainer = MultirateTrainer(
        model, arguments(tmp_path), train_dataset=Stream(), multirate=MultirateConfig.off(**SETTINGS)
    )
    with pytest.raises(NotImplementedError, match="Stream may be readable only once"):
        trainer.train()
    assert trainer.state.global_step == 0


class OwnLoop(MultirateTrainer):
    """A training loop without callbacks."""

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.create_optimizer()
        for inputs in self.get_train_dataloader():
            self.training_step(self.model, inputs, None)


def test_a_loop_that_forgets_it_is_refused(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.ladder(**SETTINGS), kind=OwnLoop)
    with pytest.raises(RuntimeError, match="head_start is 4, but the training loop of OwnLoop"):
        trainer.train()


@pytest.mark.parametrize("what", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_sharded_models_are_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer: Any = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS))
    monkeypatch.setattr(trainer, what, True)
    with pytest.raises(NotImplementedError, match=r"head_start does not work with .*Or set head_start=0"):
        trainer._read_arguments()


class OutOfMemory(TrainerCallback):
    """Fails once, within the second step."""

    failed = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.failed and state.global_step == 1:
            self.failed = True
            raise RuntimeError("CUDA out of memory.")


def test_with_a_smaller_batch_size_it_is_not_taken_twice(tmp_path: Path) -> None:
    trainer = trainer_for(
        tmp_path, MultirateConfig.ladder(**SETTINGS), auto_find_batch_size=True, callbacks=[OutOfMemory()]
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert read_record(tmp_path).summary["head_start"]["steps"] == 20


def test_the_callback_is_gone_after_a_run(tmp_path: Path) -> None:
    trainer: Any = trainer_for(tmp_path, MultirateConfig.off(**SETTINGS))
    before = list(trainer.callback_handler.callbacks)
    trainer.train()
    assert trainer.callback_handler.callbacks == before


def test_an_unhelpful_head_start_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer: Any = trainer_for(tmp_path, MultirateConfig.off(**{**SETTINGS, "head_start_lr": 1e6}), kind=Watching)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "did not lower the loss" in caplog.text
    assert_same(trainer.first, dict(example("bert")[0].state_dict()))
    assert trainer.state.log_history[0]["multirate/head_start/learning_rate"] == 0
