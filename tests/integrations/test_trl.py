"""The mixin over trainers of TRL, with its own models, adapters and reference models."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_multirate import MultirateConfig
from hf_multirate.trainer.trainer import MultirateMixin
from tests.support.counted import Counted, saving
from tests.support.runs import (
    CONFIG,
    DEFAULTS,
    FIVE,
    PERIOD,
    assert_same,
    differ,
    example,
    history,
    phases,
    weights,
)
from tests.support.tiny import DECODER, WORDS, tokenizer


os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
pytest.importorskip("trl")
from peft import LoraConfig
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)


try:
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
except ImportError:  # an older TRL has them among the others
    from trl import OnlineDPOConfig, OnlineDPOTrainer


pytestmark = [
    # TRL and PEFT on names that transformers has renamed.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Older TRL runs the reference model through reentrant checkpoints.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
]


class MultirateSFT(MultirateMixin, SFTTrainer):
    """As users write it."""


class MultirateDPO(MultirateMixin, DPOTrainer):
    """As users write it."""


def adapters() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")


def sft(folder: Path, kind: type[SFTTrainer], lora: bool, **rest: Any) -> SFTTrainer:
    rows = [{"text": " ".join(WORDS[i % 6 : i % 6 + 4])} for i in range(12)]
    settings = {key: rest.pop(key) for key in ("gradient_checkpointing", "max_steps") & rest.keys()}
    args = SFTConfig(output_dir=str(folder), max_length=8, bf16=False, **(DEFAULTS | settings))
    return kind(
        model=example("llama-lm")[0], args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
        peft_config=adapters() if lora else None, **rest,
    )  # fmt: skip


def dpo(folder: Path, kind: type[DPOTrainer], lora: bool, **rest: Any) -> DPOTrainer:
    rows = [
        {"prompt": WORDS[i % 6] + " ", "chosen": WORDS[i % 6 + 1], "rejected": WORDS[i % 6 + 2]} for i in range(12)
    ]
    settings = {key: rest.pop(key) for key in ("gradient_checkpointing", "max_steps") & rest.keys()}
    args = DPOConfig(output_dir=str(folder), bf16=False, **(DEFAULTS | settings))
    model = example("llama-lm")[0]
    return kind(
        model=model, ref_model=None if lora else copy.deepcopy(model), args=args, processing_class=tokenizer(),
        train_dataset=Dataset.from_list(rows), peft_config=adapters() if lora else None, **rest,
    )  # fmt: skip


def reward(folder: Path, **rest: Any) -> Any:
    rows = [
        {"prompt": WORDS[i % 6] + " ", "chosen": WORDS[i % 6 + 1], "rejected": WORDS[i % 6 + 2]} for i in range(12)
    ]
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(LlamaConfig(**{**DECODER, "num_labels": 1}))
    args = RewardConfig(output_dir=str(folder), bf16=False, **DEFAULTS)
    return MultirateReward(
        model=model, args=args, processing_class=tokenizer(), train_dataset=Dataset.from_list(rows), **rest
    )


def test_a_head_start_of_a_reward_model(tmp_path: Path) -> None:
    trainers = []
    for number in (0, 4):
        config = MultirateConfig.off(head_start=number, head_start_lr=1e-2)
        trainers.append(reward(tmp_path / str(number), multirate=config))
        trainers[-1].train()
    logged = trainers[1].state.log_history[0]
    assert logged["multirate/head_start/loss_after"] < logged["multirate/head_start/loss_before"]
    assert set(logged) - {"epoch", "step"} == {key for key in logged if key.startswith("multirate/head_start/")}
    keys = [set(trainer.state.log_history[number]) for number, trainer in enumerate(trainers)]
    assert keys[0] == keys[1]
    if FIVE:  # the reward trainer of TRL for transformers 4.57 collects no metrics
        assert trainers[0]._metrics.keys() == trainers[1]._metrics.keys()
        assert trainers[0]._metrics["eval"] == trainers[1]._metrics["eval"] == {}


CASES = [
    pytest.param(make, ours, plain, lora, checkpointing, id=f"{plain.__name__}-{lora}-{checkpointing}")
    for make, ours, plain in ((sft, MultirateSFT, SFTTrainer), (dpo, MultirateDPO, DPOTrainer))
    for lora in (False, True)
    for checkpointing in (False, True)
]
Make = Callable[..., Any]


@pytest.mark.parametrize(("make", "ours", "plain", "lora", "checkpointing"), CASES)
def test_fast_steps_cost_less(
    tmp_path: Path, make: Make, ours: type, plain: type, lora: bool, checkpointing: bool
) -> None:
    del plain
    counted = type("Counted", (Counted, ours), {})
    trainer = make(tmp_path, counted, lora, multirate=CONFIG, gradient_checkpointing=checkpointing)
    flags = {name: p.requires_grad for name, p in trainer.model.named_parameters()}
    before = weights(trainer)
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
    assert saving(trainer, PERIOD) < (0.8 if lora else 0.65)
    after = weights(trainer)
    for group, names in trainer.multirate.partition.items():
        # What multiplies a factor that starts at zero has a gradient of zero first.
        moved = [name for name in names if not torch.equal(before[name], after[name])]
        assert len(moved) >= len(names) // 2, group
    assert {name: p.requires_grad for name, p in trainer.model.named_parameters()} == flags


@pytest.mark.parametrize(("make", "ours", "plain", "lora", "checkpointing"), CASES)
def test_period_one_is_theirs(
    tmp_path: Path, make: Make, ours: type, plain: type, lora: bool, checkpointing: bool
) -> None:
    off = make(tmp_path, ours, lora, multirate=MultirateConfig.off(), gradient_checkpointing=checkpointing)
    theirs = make(tmp_path, plain, lora, gradient_checkpointing=checkpointing)
    off.train()
    theirs.train()
    assert history(off) == history(theirs)
    assert_same(weights(off), weights(theirs))


@pytest.mark.parametrize("make", [sft, dpo])
@pytest.mark.parametrize("lora", [False, True])
def test_resumed_is_uninterrupted(tmp_path: Path, make: Make, lora: bool) -> None:
    kind = MultirateSFT if make is sft else MultirateDPO
    whole = make(tmp_path, kind, lora, multirate=CONFIG, max_steps=8)
    whole.args.save_strategy, whole.args.save_steps = "steps", 6
    whole.train()
    again = make(tmp_path, kind, lora, multirate=CONFIG, max_steps=8)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_same(weights(again), weights(whole))


def test_reference_passes_are_left_alone(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, MultirateDPO, True, multirate=CONFIG)
    live: list[set[str]] = []
    ordinary = trainer.accelerator.backward

    def backward(loss: torch.Tensor, **kwargs: Any) -> None:
        ordinary(loss, **kwargs)
        live.append({name for name, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.accelerator.backward = backward
    trainer.train()
    fast = set(trainer.multirate.partition["fast"])
    # Leaving disable_adapter() has every adapter require a gradient again, in the middle of a step.
    assert [names <= fast for names in live] == [step % PERIOD != 0 for step in range(6)]


class MultirateGRPO(MultirateMixin, GRPOTrainer):
    """As users write it."""


class MultirateOnlineDPO(MultirateMixin, OnlineDPOTrainer):
    """As users write it."""


def online_dpo(folder: Path, kind: type[OnlineDPOTrainer], **rest: Any) -> OnlineDPOTrainer:
    settings = {**DEFAULTS, "learning_rate": 1e-3, "max_steps": rest.pop("max_steps", 6)}
    args = OnlineDPOConfig(output_dir=str(folder), max_new_tokens=4, max_length=12, bf16=False, **settings)
    model = example("llama-lm")[0]
    return kind(
        model=model, ref_model=copy.deepcopy(model), args=args, processing_class=tokenizer(),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": word} for word in WORDS]), **rest,
    )  # fmt: skip


def test_a_training_step_that_calls_backward_itself(tmp_path: Path) -> None:
    counted = type("Counted", (Counted, MultirateOnlineDPO), {})
    trainer = online_dpo(tmp_path, counted, multirate=CONFIG)
    before = weights(trainer)
    live: list[set[str]] = []
    ordinary = trainer.accelerator.backward

    def backward(loss: torch.Tensor, **kwargs: Any) -> None:
        ordinary(loss, **kwargs)
        live.append({name for name, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.accelerator.backward = backward
    trainer.train()
    everything = {name for name, _ in trainer.model.named_parameters()}
    fast = set(trainer.multirate.partition["fast"])
    assert live == [fast if step % PERIOD else everything for step in range(6)]
    assert trainer.multirate.applied_steps == 6
    assert differ(before, weights(trainer)) >= everything


def test_period_one_of_a_training_step_that_calls_backward_itself(tmp_path: Path) -> None:
    off = online_dpo(tmp_path, MultirateOnlineDPO, multirate=MultirateConfig.off())
    off.train()
    theirs = online_dpo(tmp_path, OnlineDPOTrainer)
    theirs.train()
    assert_same(weights(off), weights(theirs))


class MultirateReward(MultirateMixin, RewardTrainer):
    """As users write it."""


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("iterations", [1, 2])
def test_answers_that_are_sampled_within_a_step(tmp_path: Path, lora: bool, iterations: int) -> None:
    settings = {**DEFAULTS, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
    args = GRPOConfig(
        output_dir=str(tmp_path), num_generations=2, max_completion_length=4, num_iterations=iterations, bf16=False,
        beta=0.1 if lora else 0.0, **settings,
    )  # fmt: skip
    trainer = MultirateGRPO(
        model=example("llama-lm")[0], args=args, processing_class=tokenizer(), multirate=CONFIG,
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        train_dataset=Dataset.from_list([{"prompt": word} for word in WORDS]),
        peft_config=adapters() if lora else None,
    )  # fmt: skip
    before = weights(trainer)
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
    assert trainer.multirate.timing.summary()["fast_steps"] == 4
    if not lora:  # rewards of one group that are alike give no gradient
        after = weights(trainer)
        assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_reward_model(tmp_path: Path) -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**DECODER | {"num_labels": 1}))
    rows = [{"chosen": f"{WORDS[i]} {WORDS[i + 1]}", "rejected": WORDS[i + 2]} for i in range(8)]
    trainer = MultirateReward(
        model=model, args=RewardConfig(output_dir=str(tmp_path), bf16=False, **DEFAULTS), multirate=CONFIG,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 0, 1]
