"""Stages in Trainer: gradual unfreezing, resume, logs, record and report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from hf_multirate import MultirateConfig, RateGroup
from hf_multirate.controller.guards import unwrap_optimizer
from hf_multirate.reporting import report
from hf_multirate.reporting.run_record import card_section, read_record
from tests.support.runs import CONFIG, FIVE, Watched, assert_same, example, history, trainer_for, weights


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # Torch warns of checkpoints in frozen blocks if they are reentrant, as those of transformers 4.57 are by default.
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning"),
]
TOP = MultirateConfig.two_rate(["layer.3.", "pooler", "classifier"], "never", inactive_forward="train")
LOWER = ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(3))]
UNFREEZING = MultirateConfig.stages([(0.5, TOP), (1.0, MultirateConfig.off())])
DRIFT = MultirateConfig.two_rate("last:1", 3, "drift", drift_factor=1.0, turns="fixed")


def results(trainer: Trainer) -> dict[str, Any]:
    entries = [{k: v for k, v in entry.items() if "multirate/" not in k} for entry in history(trainer)]
    return {"weights": weights(trainer), "history": entries, "optimizer": trainer.optimizer.state_dict()}


@pytest.mark.parametrize(
    "config",
    [CONFIG, MultirateConfig.ladder([1, 2, 4]), TOP, MultirateConfig.off()],
    ids=["drift", "ladder", "never", "off"],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_one_stage_is_its_configuration(tmp_path: Path, config: MultirateConfig, accumulation: int) -> None:
    settings = {"gradient_accumulation_steps": accumulation}
    wanted = trainer_for(tmp_path / "config", config, **settings)
    wanted.train()
    staged = trainer_for(tmp_path / "stage", MultirateConfig.stages([(1.0, config)]), **settings)
    staged.train()
    assert_same(results(staged), results(wanted))


class Unfreezing(Trainer):
    """Trains the top alone in some steps, with the other parameters frozen by hand."""

    frozen_at: range = range(0)
    evaluates = False

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        frozen = self.state.global_step in self.frozen_at
        for name in LOWER:
            self.model.get_submodule(name).requires_grad_(not frozen)
        self.evaluating = frozen and self.evaluates
        return super().training_step(model, *args, **kwargs)

    def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for name in LOWER if self.evaluating else ():
            model.get_submodule(name).eval()
        return super().compute_loss(model, *args, **kwargs)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    # Trainer 4.57 with frozen lower blocks and reentrant checkpoints, its default, trains nothing but the head.
    "checkpointing": {
        "gradient_checkpointing": True,
        **({} if FIVE else {"gradient_checkpointing_kwargs": {"use_reentrant": False}}),
    },
    "sgd": {"optim": "sgd"},
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("order", ["unfreezing", "freezing"])
def test_unfreezing_and_freezing_by_hand(tmp_path: Path, order: str, variant: str, mode: str) -> None:
    top = MultirateConfig(TOP.groups, inactive_forward=mode)
    pair = [top, MultirateConfig.off()][:: 1 if order == "unfreezing" else -1]
    wanted: Any = trainer_for(tmp_path / "hand", None, kind=Unfreezing, **VARIANTS[variant])
    wanted.frozen_at, wanted.evaluates = range(3) if order == "unfreezing" else range(3, 6), mode == "eval"
    wanted.train()
    config = MultirateConfig.stages([(0.5, pair[0]), (1.0, pair[1])])
    trainer = trainer_for(tmp_path / "stages", config, **VARIANTS[variant])
    trainer.train()
    assert_same(results(trainer), results(wanted))
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


THREE = MultirateConfig.stages(
    [(0.4, TOP), (0.8, DRIFT), (1.0, MultirateConfig.two_rate("last:2", 2, "long_step", turns="fixed"))]
)


@pytest.mark.parametrize("saved", [1, 4, 5, 6, 8, 9])
def test_resume_is_exact(tmp_path: Path, saved: int) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 10}
    whole, resumed = (trainer_for(tmp_path / name, THREE, **settings) for name in ("whole", "resumed"))
    if not FIVE:  # Trainer 4.57 gives the rows of a resumed second epoch another order, so there is only one
        whole.train_dataset, resumed.train_dataset = (example("bert", 24)[1] for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{saved}"))
    assert_same(weights(resumed), weights(whole))
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    stages = [entry["multirate/stage"] for entry in resumed.state.log_history if "loss" in entry]
    assert stages == [1] * 4 + [2] * 4 + [3] * 2


def test_each_stage_begins_with_a_gradient_for_its_groups(tmp_path: Path) -> None:
    config = MultirateConfig.stages([(0.4, DRIFT), (0.7, TOP), (1.0, DRIFT)])
    trainer: Any = trainer_for(tmp_path, config, kind=Watched, max_steps=10)
    trainer.train()
    counts = [len(names) for _, names in trainer.seen]
    full, top = counts[0], min(counts)
    assert counts == [full, top, top, full, top, top, top, full, top, top]
    assert trainer.multirate.step == 9


def test_a_group_that_is_never_live_is_frozen_and_the_others_keep_their_state(tmp_path: Path) -> None:
    groups = (
        RateGroup("top", "last:1"),
        RateGroup("middle", r"layer\.[12]\.", "never"),
        RateGroup("rest", ".*", "never"),
    )
    later = (groups[0], RateGroup("middle", r"layer\.[12]\.", 1), groups[2])
    config = MultirateConfig.stages([(0.5, MultirateConfig(later)), (1.0, MultirateConfig(groups))])
    trainer: Any = trainer_for(tmp_path, config)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("layer.1." in name for name in moved)
    assert not any("layer.0." in name or "embeddings" in name for name in moved)
    optimizer = unwrap_optimizer(trainer.optimizer)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    steps = {names[p]: int(optimizer.state[p]["step"]) for g in optimizer.param_groups for p in g["params"]}
    assert {count for name, count in steps.items() if "layer.1." in name} == {3}
    assert {count for name, count in steps.items() if "layer.3." in name} == {6}
    assert not any("layer.0." in name for name in steps)
    assert set(trainer.multirate.partition.never) == {"rest"}


def test_learning_rates_of_stages_share_the_groups_of_the_optimizer(tmp_path: Path) -> None:
    scaled = (RateGroup("top", "last:1"), RateGroup("rest", ".*", 2, "long_step", lr_scale=0.5))
    resting = (RateGroup("top", "last:1"), RateGroup("rest", ".*", "never"))
    config = MultirateConfig.stages([(0.5, MultirateConfig(resting)), (1.0, MultirateConfig(scaled, turns="fixed"))])
    trainer: Any = trainer_for(tmp_path, config, lr_scheduler_type="constant")
    trainer.train()
    optimizer = unwrap_optimizer(trainer.optimizer)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for name, rate in rates.items() if "layer.3." in name} == {1e-2}
    assert {rate for name, rate in rates.items() if "layer.1." in name} == {5e-3}
    other = MultirateConfig([scaled[0], RateGroup("rest", ".*", 2, lr_scale=0.1)])
    with pytest.raises(ValueError, match=r"has the factor 0\.5 in one stage and 0\.1 in stage 2"):
        trainer_for(tmp_path, MultirateConfig.stages([(0.5, MultirateConfig(scaled)), (1.0, other)]))


def test_log_record_report_and_card(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hf_multirate")
    trainer: Any = trainer_for(tmp_path, UNFREEZING, multirate_record=True)
    trainer.train()
    entries = [entry for entry in history(trainer) if "loss" in entry]
    assert [entry["multirate/stage"] for entry in entries] == [1] * 3 + [2] * 3
    begins = [record.getMessage() for record in caplog.records if "begins before step" in record.getMessage()]
    assert begins == ["stage 2 of 2 begins before step 3. Periods: all: 1."]
    record = read_record(tmp_path)
    first, second = record.summary["stages"]
    assert (first["until"], first["periods"]) == (0.5, {"fast": 1, "slow": "never"})
    assert second["speedup_predicted"] == 1.0
    whole = 1 / (0.5 / first["speedup_predicted"] + 0.5)
    assert record.summary["speedup_predicted"] == pytest.approx(whole)
    assert record.summary["speedup_predicted_of_run"] == pytest.approx(whole)
    assert (record.summary["full_steps"], record.summary["fast_steps"]) == (3, 3)
    page = report(tmp_path).read_text()
    assert "stage 1, from 0% to 50%" in page
    assert "periods fast: 1, slow: never" in page
    assert "stage 2, from 50% to 100%" in card_section(record)
    values = json.loads((tmp_path / "multirate_record.json").read_text())
    assert MultirateConfig.from_dict(values["config"]) == UNFREEZING


def test_a_short_run_skips_a_stage_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.stages([(0.5, TOP), (0.6, DRIFT), (1.0, MultirateConfig.off())])
    trainer = trainer_for(tmp_path, config, max_steps=2)
    trainer.train()
    assert "stages [2] have no step, because the run has only 2 steps." in caplog.text
    assert [entry["multirate/stage"] for entry in history(trainer) if "loss" in entry] == [1, 3]


def test_off_in_all_stages_is_standard_training(tmp_path: Path) -> None:
    off = MultirateConfig.off()
    trainer = trainer_for(tmp_path / "ours", MultirateConfig.stages([(0.5, off), (1.0, off)]))
    trainer.train()
    wanted = trainer_for(tmp_path / "plain", None)
    wanted.train()
    assert_same(results(trainer), results(wanted))
