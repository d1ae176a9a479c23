"""MultirateTrainer together with other losses, adapters, ties, other trainers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_multirate import MultirateConfig, MultirateSeq2SeqTrainer, MultirateTrainer, RateGroup
from tests.support.runs import (
    CONFIG,
    DEFAULTS,
    PERIOD,
    Watched,
    assert_same,
    differ,
    example,
    history,
    phases,
    trainer_for,
    weights,
)


PHASES = [0, 1, 2, 3, 0, 1]


def soft_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    del num_items_in_batch
    return nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.2)


@pytest.mark.parametrize("settings", [{"label_smoothing_factor": 0.2}, {"compute_loss_func": soft_loss}])
@pytest.mark.parametrize("idle", ["drift", "long_step"])
def test_other_losses(tmp_path: Path, settings: dict[str, Any], idle: str) -> None:
    config = MultirateConfig.two_rate("last:1", 5, idle, turns="fixed")
    trainer, default = (trainer_for(tmp_path, config, kind=Watched, **each) for each in (settings, {}))
    trainer.train()
    default.train()
    assert phases(trainer) == [0, 1, 2, 3, 4, 0]
    assert trainer.seen == default.seen
    assert trainer.saved[1] < 0.5 * trainer.saved[0]
    assert differ(weights(trainer), weights(default)) >= {name for name, _ in trainer.model.named_parameters()}


class Forgetful(MultirateTrainer):
    """One slow parameter gets no gradient at one step, though it is not frozen."""

    lost, at = "bert.encoder.layer.0.output.dense.weight", PERIOD

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        parameter = model.get_parameter(self.lost)
        flag = parameter.requires_grad
        parameter.requires_grad_(flag and self.state.global_step != self.at)
        loss = super().compute_loss(model, *args, **kwargs)
        parameter.requires_grad_(flag)
        return loss


def test_slow_parameter_without_its_gradient(tmp_path: Path, warnings_of: Any) -> None:
    strict = MultirateConfig.two_rate("last:1", PERIOD, on_missing_gradient="error", turns="fixed", idle="drift")
    with pytest.raises(RuntimeError, match=rf"got no gradient at step {PERIOD}.*{Forgetful.lost}"):
        trainer_for(tmp_path, strict, kind=Forgetful).train()
    tolerant = trainer_for(tmp_path, CONFIG, kind=Forgetful)
    said = warnings_of(tolerant)
    assert f"got no gradient at step {PERIOD} (live step 2 of the group)" in said
    assert Forgetful.lost in said
    assert phases(tolerant) == PHASES


@pytest.mark.parametrize("missing", ["error", "warn"])
def test_group_without_any_gradient(tmp_path: Path, missing: str, warnings_of: Any) -> None:
    class Unused(Forgetful):
        lost, at = "bert.embeddings.position_embeddings.weight", 0

    groups = (
        RateGroup("fast", "last:1", 1),
        RateGroup("positions", "position", 2, idle="drift"),
        RateGroup("slow", ".*", PERIOD, idle="drift"),
    )
    trainer = trainer_for(tmp_path, MultirateConfig(groups, on_missing_gradient=missing, turns="fixed"), kind=Unused)
    if missing == "error":
        with pytest.raises(
            RuntimeError, match="1 of 1 parameters of rate group 'positions' got no gradient at step 0"
        ):
            trainer.train()
    else:
        assert "1 of 1 parameters of rate group 'positions' got no gradient at step 0" in warnings_of(trainer)


class Resets(MultirateTrainer):
    """Has every parameter require a gradient before each forward pass, as PEFT does behind disable_adapter()."""

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        model.requires_grad_(True)
        return super().compute_loss(model, *args, **kwargs)


def test_flags_that_are_reset_before_a_forward_pass_do_no_harm(tmp_path: Path) -> None:
    ends = []
    for kind in (MultirateTrainer, Resets):
        trainer = trainer_for(tmp_path, CONFIG, kind=kind)
        trainer.train()
        ends.append((weights(trainer), history(trainer)))
    assert_same(*ends)


def test_flags_that_are_reset_in_the_middle_of_one_are_noticed(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG)
    model = trainer.model
    model.bert.embeddings.register_forward_pre_hook(lambda *_: model.requires_grad_(True) and None)
    with pytest.raises(RuntimeError, match=r"is idle at step 1, but .* have a gradient"):
        trainer.train()


# peft still asks transformers for a property by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor"])
def test_adapters(tmp_path: Path, optim: str) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
        return peft.get_peft_model(example("bert")[0], config)

    trainer = trainer_for(tmp_path, CONFIG, kind=Watched, model_init=adapted, optim=optim, label_names=["labels"])
    trainer.train()
    parameters = dict(trainer.model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    fast = set(trainer.multirate.partition["fast"])
    assert {live for _, live in trainer.seen} == {frozenset(trained), frozenset(fast)}
    assert all("lora" in name or "modules_to_save" in name for name in trained)
    assert 0 < len(fast) < len(trained)
    assert phases(trainer) == PHASES
    start = {name: value.detach() for name, value in adapted().named_parameters()}
    changed = differ(start, parameters)
    assert changed <= trained
    assert {name for name in trained if "lora_B" in name} <= changed


def test_fast_part_that_is_no_suffix(tmp_path: Path, warnings_of: Any) -> None:
    config = MultirateConfig.two_rate("embeddings", PERIOD, turns="fixed", idle="drift")
    trainer = trainer_for(tmp_path, config, kind=Watched)
    said = warnings_of(trainer)
    assert said.count("backward runs through") == 1
    assert "predicted cost of this step 0.67 of a full one" in said
    # Wrong about time, right about everything else.
    assert phases(trainer) == PHASES
    assert warnings_of(trainer_for(tmp_path, CONFIG)) == ""


def test_tied_head_in_either_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hf_multirate")
    said = {}
    for fast in ("wte|ln_f", "last:1"):
        caplog.clear()
        trainer = trainer_for(tmp_path, MultirateConfig.two_rate(fast, PERIOD, turns="fixed", idle="drift"), "gpt2-lm")
        trainer.train()
        assert phases(trainer) == PHASES
        (said[fast],) = [(r.levelname, r.getMessage()) for r in caplog.records if "tied to" in r.getMessage()]
    level, told = said["wte|ln_f"]
    assert level == "WARNING"
    assert "'transformer.wte.weight'" in told
    assert "fast rate group 'fast'" in told
    # Nothing can be done about this one.
    level, told = said["last:1"]
    assert level == "INFO"
    assert "'lm_head.weight' is tied to the embedding" in told
    assert f"every {PERIOD} steps" in told


def test_seq2seq(tmp_path: Path) -> None:
    outcomes = []
    for kind, config in (
        (Seq2SeqTrainer, {}),
        (MultirateSeq2SeqTrainer, {"multirate": MultirateConfig.off()}),
        (MultirateSeq2SeqTrainer, {"multirate": CONFIG}),
    ):
        model, rows = example("t5")
        settings = {**DEFAULTS, "predict_with_generate": True, "generation_max_length": 4}
        args = Seq2SeqTrainingArguments(str(tmp_path), eval_strategy="steps", eval_steps=3, **settings)
        trainer = kind(model=model, args=args, train_dataset=rows, eval_dataset=rows[:2], **config)
        trainer.train()
        outcomes.append((weights(trainer), history(trainer)))
    assert_same(outcomes[1], outcomes[0])
    assert differ(outcomes[2][0], outcomes[0][0])
    assert phases(trainer) == PHASES
    generated = trainer.predict(rows[:2]).predictions
    assert generated.shape[0] == 2
    assert generated.dtype.kind == "i"  # tokens, not logits
