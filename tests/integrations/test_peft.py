"""PEFT models: which adapters are live when, saving and merging as in PEFT, exact resume, learning rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import AdamW

from hf_multirate import MultirateConfig, MultirateTrainer, RateGroup, multirate_parameter_groups
from tests.support.runs import FIVE, Watched, arguments, assert_same, differ, example, weights


# peft reads the old name of a property of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PERIOD = 3
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["query", "value", "q_proj", "v_proj"]}
ADAPTERS: dict[str, Callable[[str], peft.PeftConfig]] = {
    "lora": lambda task: peft.LoraConfig(task_type=task, **LORA),
    "dora": lambda task: peft.LoraConfig(task_type=task, use_dora=True, **LORA),
    "modules_to_save": lambda task: peft.LoraConfig(task_type=task, modules_to_save=["pooler", "lm_head"], **LORA),
    "ia3": lambda task: peft.IA3Config(task_type=task, target_modules=["key", "k_proj"], feedforward_modules=[]),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
}
TASKS = {"bert": "SEQ_CLS", "llama-lm": "CAUSAL_LM"}


def adapted(kind: str, family: str) -> tuple[Any, list[dict[str, Tensor]]]:
    model, rows = example(family)
    return peft.get_peft_model(model, ADAPTERS[kind](TASKS[family])), rows


def trainer_of(folder: Path, config: MultirateConfig | None, kind: str, family: str = "bert", **rest: Any) -> Any:
    model, rows = adapted(kind, family)
    change = rest.pop("change", None)
    if change is not None:
        change(model)
    own = {key: rest.pop(key) for key in ("optimizers",) if key in rest}
    if own:
        own["optimizers"] = own["optimizers"](model)
    return Watched(model=model, args=arguments(folder, **rest), train_dataset=rows, multirate=config, **own)


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "modules_to_save"])
def test_upper_adapters_fast_and_lower_slow(
    tmp_path: Path, kind: str, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(tmp_path, MultirateConfig.ladder([1, PERIOD], idle="drift"), kind, family)
    fast, slow = (set(trainer.multirate.partition[f"part {i}"]) for i in (1, 2))
    assert fast
    assert slow
    assert all(".layer.2." in name or ".layer.3." in name or "layers.2." in name or "layers.3." in name
               or "classifier" in name or "pooler" in name or "lm_head" in name for name in fast)  # fmt: skip
    before = weights(trainer)
    trainer.train()
    assert [live for _, live in trainer.seen] == [fast | slow, fast, fast] * 2
    # A lower adapter keeps activations at a full step alone.
    assert trainer.saved[1] < 0.8 * trainer.saved[0]
    assert differ(weights(trainer), before) == fast | slow
    assert "backward runs through" not in caplog.text


def test_prompt_is_below_everything(tmp_path: Path) -> None:
    config = MultirateConfig((RateGroup("fast", "classifier", 1), RateGroup("slow", "prompt", PERIOD, idle="drift")))
    trainer = trainer_of(tmp_path, config, "prompt")
    trainer.train()
    slow = set(trainer.multirate.partition["slow"])
    assert slow == {"prompt_encoder.default.embedding.weight"}
    assert [bool(live & slow) for _, live in trainer.seen] == [True, False, False] * 2
    assert trainer.saved[1] < 0.5 * trainer.saved[0]


def unfreeze(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("original_module" not in name)


@pytest.mark.parametrize("kind", ["lora", "modules_to_save"])
def test_adapters_fast_and_unfrozen_base_slow(tmp_path: Path, kind: str) -> None:
    config = MultirateConfig.two_rate(["lora_", "modules_to_save"], PERIOD, idle="drift")
    trainer = trainer_of(tmp_path, config, kind, change=unfreeze)
    fast, slow = (set(trainer.multirate.partition[name]) for name in ("fast", "slow"))
    assert len(slow) > len(fast) > 10
    before = weights(trainer)
    trainer.train()
    assert [live for _, live in trainer.seen] == [fast | slow, fast, fast] * 2
    assert differ(weights(trainer), before) == fast | slow


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "modules_to_save"])
def test_saved_loaded_and_merged_as_in_peft(tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(tmp_path, MultirateConfig.ladder([1, PERIOD], idle="drift"), kind)
    batch = {key: torch.stack([row[key] for row in trainer.train_dataset[:4]]) for key in trainer.train_dataset[0]}
    base = example("bert")[0]
    untrained = base.eval()(**batch).logits
    trainer.train()
    wanted = trainer.model.eval()(**batch).logits
    assert not torch.allclose(untrained, wanted, atol=1e-3)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    assert torch.equal(loaded(**batch).logits, wanted)
    merged = loaded.merge_and_unload()
    assert torch.allclose(merged(**batch).logits, wanted, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "ia3" in name]


@pytest.mark.parametrize("kind", ["lora", "modules_to_save", "prompt"])
@pytest.mark.parametrize("step", [2, 3, 4])
def test_resumed_is_uninterrupted(tmp_path: Path, kind: str, step: int) -> None:
    groups = (RateGroup("fast", "classifier|pooler", 1), RateGroup("slow", ".*", PERIOD, idle="drift"))
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(tmp_path / "whole", MultirateConfig(groups), kind, **settings)
    whole.train()
    other = trainer_of(tmp_path / "other", MultirateConfig(groups), kind, **settings)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert_same(weights(other), weights(whole))


@pytest.mark.parametrize("ratio", [4.0, 16.0])
def test_lr_scale_is_the_ratio_of_lora_plus(tmp_path: Path, ratio: float) -> None:
    """All groups at period 1, so that learning rates are all that differs from plain training."""

    def lora_plus(model: nn.Module) -> Any:
        return create_loraplus_optimizer(model, AdamW, lr=1e-3, loraplus_lr_ratio=ratio), None

    plain = trainer_of(tmp_path, MultirateConfig.off(), "lora", optimizers=lora_plus)
    plain.train()

    def faster(name: str, parameter: nn.Parameter) -> str | None:
        return "B" if "lora_B" in name or parameter.dim() == 1 else None

    groups = (RateGroup("B", (), 1, lr_scale=ratio), RateGroup("rest", ".*", 1))
    config = MultirateConfig(groups, group_fn=faster)

    def scaled(model: nn.Module) -> Any:
        return AdamW(multirate_parameter_groups(model, config, lr=1e-3)), None

    ours = trainer_of(tmp_path, config, "lora", optimizers=scaled)
    start = weights(ours)
    ours.train()
    one, other = weights(plain), weights(ours)
    moved = differ(one, start)
    assert moved
    for name in moved:
        assert torch.allclose(one[name], other[name], atol=2e-5 * ratio), name
    largest = max(float((one[name] - start[name]).abs().max()) for name in moved if "lora_B" in name)
    assert largest > 2e-3 * ratio


@pytest.mark.parametrize("ratio", [4.0])
def test_rates_of_lora_plus_stay_with_slow_adapters(tmp_path: Path, ratio: float) -> None:
    """Drift goes by the learning rate of the optimizer's own group, so LoRA+ and two rates go together."""

    def lora_plus(model: nn.Module) -> Any:
        return create_loraplus_optimizer(model, AdamW, lr=1e-3, loraplus_lr_ratio=ratio), None

    config = MultirateConfig.ladder([1, PERIOD], drift_factor=1.0, idle="drift")
    trainer = trainer_of(tmp_path, config, "lora", optimizers=lora_plus, max_steps=2, lr_scheduler_type="constant")
    start = weights(trainer)
    trainer.train()
    for name, value in weights(trainer).items():
        if "layer.0" in name and "lora_B" in name:
            # A first step of Adam has the length of the learning rate everywhere, and the drift repeats it.
            assert float((value - start[name]).abs().median()) == pytest.approx(2e-3 * ratio, rel=0.3), name


def test_adapter_without_a_trainable_parameter_is_named(tmp_path: Path) -> None:
    model, _ = adapted("lora", "bert")
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(example("bert")[0], str(tmp_path / "adapter"))
    loaded.requires_grad_(False)  # as PEFT does itself since 0.18
    trainer = MultirateTrainer(model=loaded, args=arguments(tmp_path), train_dataset=example("bert")[1])
    assert trainer.evaluate(example("bert")[1])["eval_loss"] > 0
    with pytest.raises(ValueError, match=r"no trainable parameter.*load an adapter with is_trainable=True"):
        trainer.train()


def test_frozen_adapter_beside_a_trainable_base_is_named(tmp_path: Path) -> None:
    model, _ = adapted("lora", "bert")
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(example("bert")[0], str(tmp_path / "adapter"))
    loaded.requires_grad_(False)
    loaded.base_model.model.bert.pooler.requires_grad_(True)
    for config in (MultirateConfig.off(), MultirateConfig.ladder([1, 2], idle="drift")):
        trainer = MultirateTrainer(
            model=loaded, args=arguments(tmp_path), train_dataset=example("bert")[1], multirate=config
        )
        with pytest.raises(ValueError, match=r"no parameter of the active adapter is trainable.*is_trainable=True"):
            trainer.train()


# Tuners of newer PEFT, by the name of their configuration: settings beside the modules.
TUNERS: dict[str, dict[str, Any]] = {
    "AdamssConfig": {}, "BOFTConfig": {"boft_block_size": 4}, "C3AConfig": {"block_size": 8}, "DeloraConfig": {},
    "FourierFTConfig": {"n_frequency": 20}, "GloraConfig": {}, "GraloraConfig": {"r": 4, "gralora_k": 2},
    "HRAConfig": {}, "HiraConfig": {}, "LoHaConfig": {"module_dropout": 0.2}, "LoKrConfig": {}, "MissConfig": {"r": 4},
    "OFTConfig": {"oft_block_size": 8}, "RandLoraConfig": {"r": 4}, "RoadConfig": {"group_size": 8},
    "ShiraConfig": {"r": 2}, "VeraConfig": {"r": 4},
}  # fmt: skip


@pytest.mark.parametrize("tuner", [name for name in TUNERS if name in dir(peft)])
@pytest.mark.filterwarnings("ignore")  # of tuners about their settings
def test_tuners_of_peft_train_upper_and_lower_adapters(
    tmp_path: Path, tuner: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = example("bert")
    config = getattr(peft, tuner)(task_type="SEQ_CLS", target_modules=["query", "value"], **TUNERS[tuner])
    trainer = MultirateTrainer(
        model=peft.get_peft_model(model, config),
        args=arguments(tmp_path, max_steps=2 * PERIOD),
        train_dataset=rows,
        multirate=MultirateConfig.two_rate("last:1", PERIOD, on_missing_gradient="warn", idle="drift"),
    )
    before = weights(trainer)
    trainer.train()
    moved = differ(weights(trainer), before)
    for group in ("fast", "slow"):
        assert moved & set(trainer.multirate.partition[group])
    assert moved <= {name for names in trainer.multirate.partition.values() for name in names} | set(
        dict(trainer.model.named_buffers())
    )
    assert "predicted cost of a fast step was wrong" not in caplog.text


class Allocates(MultirateTrainer):
    """Allocates ranks at every step, as the documentation of AdaLoRA has it."""

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.model.base_model.update_and_allocate(self.state.global_step)
        return norm


class Sums(MultirateTrainer):
    """Adds the loss of MonteCLoRA, which reads what its samplers have kept of their last forward pass."""

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        for module in model.modules():
            if type(module).__name__ == "MontecloraSampler":
                loss = loss + sum(module.get_variational_loss())
        return loss


@pytest.mark.skipif(not FIVE, reason="the method that gradients are seen in is of transformers 5")
def test_adalora_allocates_ranks_at_fast_steps(tmp_path: Path) -> None:
    model, rows = example("bert")
    settings = {"total_step": 40, "tinit": 4, "tfinal": 2, "deltaT": 1, "init_r": 4, "target_r": 2}
    config = peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], **settings)
    trainer = Allocates(
        model=peft.get_peft_model(model, config),
        args=arguments(tmp_path, max_steps=12),
        train_dataset=rows,
        multirate=MultirateConfig.two_rate("last:1", PERIOD, on_missing_gradient="warn", idle="drift"),
    )
    allocator = trainer.model.base_model.rankallocator
    trainer.train()
    assert "update_ipt" not in vars(allocator)
    known = {name for name in allocator.exp_avg_ipt if allocator.exp_avg_ipt[name].abs().sum() > 0}
    for layer in range(4):
        assert any(f"layer.{layer}." in name for name in known)


@pytest.mark.skipif("MontecloraConfig" not in dir(peft), reason="MonteCLoRA is of newer PEFT")
@pytest.mark.parametrize("idle", ["drift", "long_step"])
def test_a_loss_on_what_an_adapter_has_kept_of_its_forward_pass(tmp_path: Path, idle: str) -> None:
    model, rows = example("bert")
    lora = peft.LoraConfig(task_type="SEQ_CLS", **LORA, monteclora_config=peft.MontecloraConfig(num_samples=2))
    trainer = Sums(
        model=peft.get_peft_model(model, lora),
        args=arguments(tmp_path),
        train_dataset=rows,
        multirate=MultirateConfig.two_rate("last:1", PERIOD, idle),
    )
    trainer.train()
    assert trainer.state.global_step == 6
