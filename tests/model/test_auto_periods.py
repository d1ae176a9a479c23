"""Automatic periods: blocks as rate groups, the speed-up asked for, and what cannot be reached."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from torch.optim import SGD
from transformers import HfArgumentParser

from hf_multirate import Multirate, MultirateConfig, MultirateTrainingArguments, RandomSubset, RateGroup, plan
from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.model.auto_periods import block_groups, choose_periods
from hf_multirate.model.partition import assign
from tests.support.runs import Watched, arguments, assert_same, example, trainer_for, weights
from tests.support.tiny import FAMILIES


# peft reads the old name of a property of transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

STEPS = 12


def trained(folder: Path, config: MultirateConfig | None) -> Any:
    trainer = trainer_for(folder, config, max_steps=STEPS)
    trainer.train()
    return trainer


def test_blocks_of_a_stack_go_from_the_top_down() -> None:
    model, _ = FAMILIES["bert"]()
    groups = block_groups(model)
    assert [group.name for group in groups] == ["head+block_3", "block_2", "block_1", "block_0", "embeddings"]
    partition = assign(MultirateConfig(groups), model)
    top = partition["head+block_3"]
    assert {"bert.pooler.dense.weight", "classifier.bias"} <= set(top)
    assert sum(name.startswith("bert.encoder.layer.3.") for name in top) == len(top) - 4
    assert all(name.startswith("bert.encoder.layer.2.") for name in partition["block_2"])
    assert all(name.startswith("bert.embeddings.") for name in partition["embeddings"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_is_in_one_block(family: str) -> None:
    model, _ = FAMILIES[family]()
    groups = block_groups(model)
    partition = assign(MultirateConfig(groups), model)
    assert sum(map(len, partition.values())) == len(list(model.parameters()))
    assert len(groups) > 2


def test_blocks_of_a_model_without_a_stack_are_its_children() -> None:
    layers = {"in": nn.Linear(4, 5), "norm": nn.LayerNorm(5), "conv": nn.Conv1d(1, 1, 1), "out": nn.Linear(5, 2)}
    inner = nn.ModuleDict(layers)
    assert [group.name for group in block_groups(inner)] == ["out", "conv", "norm", "in"]
    outer = nn.ModuleDict({"net": inner})
    assert [group.name for group in block_groups(outer)] == ["net.out", "net.conv", "net.norm", "net.in"]
    inner["out"].requires_grad_(False)
    assert [group.name for group in block_groups(inner)] == ["conv", "norm", "in"]


def test_layers_of_a_flat_sequence_are_its_blocks() -> None:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Conv1d(1, 1, 1), nn.Linear(5, 2))
    assert [group.name for group in block_groups(inner)] == ["block_4", "block_3", "block_0"]


def test_a_tied_weight_lies_as_deep_as_its_deepest_place() -> None:
    model, _ = FAMILIES["gpt2-lm"]()
    partition = assign(MultirateConfig(block_groups(model)), model)
    assert "transformer.wte.weight" in partition["embeddings"]
    flat = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Bilinear(3, 3, 3), nn.Linear(3, 3))
    flat[3].weight = flat[0].weight
    assert "0.weight" in assign(MultirateConfig(block_groups(flat)), flat)["block_0"]


def test_blocks_of_adapters() -> None:
    model, _ = FAMILIES["bert"]()
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    groups = block_groups(model)
    assert [group.name for group in groups] == ["head+block_3", "block_2", "block_1", "block_0"]
    partition = assign(MultirateConfig(groups), model)
    assert all("lora_" in name for name in partition["block_1"])


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        Multirate(MultirateConfig.auto()).assign(nn.Linear(2, 2).requires_grad_(False))


def test_periods_rise_with_depth_and_keep_the_speedup() -> None:
    model, _ = FAMILIES["bert"]()
    for speedup in (1.2, 1.5, 1.7):
        chosen = choose_periods(MultirateConfig.auto(speedup, inactive_forward="train"), model)
        periods = [group.period for group in chosen.groups]
        assert periods[0] == 1 < periods[-1]
        assert periods == sorted(periods)
        assert chosen.inactive_forward == "train"
        controller = Multirate(MultirateConfig.auto(speedup)).attach(model, SGD(model.parameters(), lr=0.1))
        assert controller.timing.speedup_predicted >= speedup - 1e-6
        controller.detach()


def test_the_default_ladder_is_shortened_for_a_model_with_two_blocks(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    controller = Multirate(MultirateConfig()).attach(model, SGD(model.parameters(), lr=0.1))
    assert [group.period for group in controller.groups] == [1, 2]
    assert caplog.text.count("the model has 2 blocks: the periods [1, 2] are used") == 1
    controller.detach()
    with pytest.raises(ValueError, match="asks for 4 parts of the 2 blocks"):
        Multirate(MultirateConfig.ladder([1, 2, 4, 8])).assign(model)


def test_given_periods_are_left_as_they_are() -> None:
    config = MultirateConfig.two_rate("head", 3)
    assert choose_periods(config, FAMILIES["bert"]()[0]) is config


def test_the_choice_is_the_same_each_time_and_has_no_state(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.auto(1.5), max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    again = Multirate(MultirateConfig.auto(1.5)).assign(trainer.model)
    assert again.groups == trainer.multirate.groups
    saved = json.loads((tmp_path / "checkpoint-2" / "multirate.json").read_text())
    assert "plan" not in saved["config"]
    assert saved["config"]["auto_periods"] == {"speedup": 1.5, "max_period": 16}


@pytest.mark.parametrize("family", ["bert", "gpt2-lm", "llama-lm", "t5", "bart", "vit", "resnet", "deberta-v3"])
def test_it_trains_many_families(tmp_path: Path, family: str) -> None:
    model, rows = example(family)
    config = MultirateConfig.auto(1.3, max_period=4)
    trainer = Watched(model=model, args=arguments(tmp_path, max_steps=8), train_dataset=rows, multirate=config)
    trainer.train()
    assert len({len(live) for _, live in trainer.seen}) > 1


def test_speedup_one_is_standard_training(tmp_path: Path) -> None:
    ours = trained(tmp_path, MultirateConfig.auto(1.0))
    standard = trained(tmp_path, None)
    assert_same(weights(ours), weights(standard))


def test_blocks_that_the_user_names(tmp_path: Path) -> None:
    blocks = ["embeddings", r"layer\.[01]\.", r"layer\.[23]\.", "pooler|classifier"]
    trainer = trained(tmp_path, MultirateConfig.auto(1.6, blocks, max_period=4))
    assert list(trainer.multirate.partition) == blocks[::-1]


def test_a_frozen_block_of_the_user_is_left_out() -> None:
    model, _ = FAMILIES["bert"]()
    model.bert.embeddings.requires_grad_(False)
    controller = Multirate(MultirateConfig.auto(1.5, ["embeddings", r"layer\.", "pooler|classifier"])).assign(model)
    assert list(controller.partition) == ["pooler|classifier", r"layer\."]


def test_a_plan_of_automatic_periods() -> None:
    model, batch = FAMILIES["bert"]()
    (found,) = plan(model, batch, {"auto": MultirateConfig.auto(1.5)})
    assert found.speedup > 1.2


def test_the_table_has_the_chosen_periods() -> None:
    model, _ = FAMILIES["bert"]()
    controller = Multirate(MultirateConfig.auto(1.5)).assign(model)
    table = controller.describe()
    assert "head+block_3" in table
    assert "predicted speed-up: 1.5" in table


def test_a_speedup_out_of_reach_is_said_and_the_largest_is_used(caplog: pytest.LogCaptureFixture) -> None:
    chosen = choose_periods(MultirateConfig.auto(20.0, max_period=4), FAMILIES["bert"]()[0])
    assert [group.period for group in chosen.groups] == [1, 4, 4, 4, 4]
    (record,) = caplog.records
    assert "requested speed-up 20.00 is not reachable: the maximum is " in record.getMessage()


def test_a_speedup_within_reach_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    choose_periods(MultirateConfig.auto(1.5), FAMILIES["bert"]()[0])
    assert not caplog.records


def test_one_block_is_standard_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = trained(tmp_path, MultirateConfig.auto(2.0, ["."]))
    standard = trained(tmp_path, None)
    assert caplog.text.count("one block with trainable parameters, so every step is a full step") == 1
    assert_same(weights(ours), weights(standard))


def test_a_block_with_most_of_the_work_is_named(caplog: pytest.LogCaptureFixture) -> None:
    sizes = (32, 32, 4, 4, 2)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    choose_periods(MultirateConfig.auto(1.5, [f"^{i}[.]" for i in range(4)], max_period=4), model)
    assert "block '^0[.]' has " in caplog.text


def test_a_config_survives_json(tmp_path: Path) -> None:
    config = MultirateConfig.auto(1.7, ["embeddings", "."], max_period=8, inactive_forward="train")
    path = tmp_path / "auto.json"
    path.write_text(config.to_json())
    assert MultirateConfig.from_json_file(path) == config
    assert json.loads(config.to_json())["auto_periods"] == {"speedup": 1.7, "max_period": 8}
    assert json.loads(MultirateConfig.auto(np.float32(1.5)).to_json())["auto_periods"]["speedup"] == 1.5


def test_the_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(MultirateTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--multirate", "auto"]
    (args,) = parser.parse_args_into_dataclasses([*words, "--multirate_speedup", "1.5"])
    assert args.to_multirate_config() == MultirateConfig.auto(1.5)
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.to_multirate_config().auto_periods == AutoPeriods()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"multirate": "auto", "multirate_fast": "head"}, "multirate_fast is given too"),
        ({"multirate": "auto", "multirate_config": "x.json"}, "multirate_config is given too"),
        ({"multirate_speedup": 2.0}, "multirate is 'on'. Set multirate='auto'"),
        ({"multirate": "auto", "multirate_speedup": 0.5}, "speedup must be at least 1, got 0.5"),
        ({"multirate": "automatic"}, r"one of \('on', 'off', 'auto', 'new_head'\)"),
    ],
)
def test_flags_that_contradict_each_other(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultirateTrainingArguments(str(tmp_path), use_cpu=True, **words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speedup": 0.9}, "at least 1, got 0.9"),
        ({"speedup": float("nan")}, "speedup must be finite, got nan"),
        ({"speedup": float("inf")}, "speedup must be finite, got inf"),
        ({"max_period": 12}, "power of two, got 12"),
        ({"max_period": 1}, "max_period must be at least 2"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoPeriods(**values)


def test_values_of_another_type() -> None:
    with pytest.raises(TypeError, match=r"max_period must be an integer number of steps, got 4\.0"):
        AutoPeriods(max_period=4.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"blocks must be a list of regular expressions.*got 'head'"):
        MultirateConfig.auto(1.5, "head")
    for speedup in ("2.0", True, torch.tensor(2.0)):
        with pytest.raises(TypeError, match="speedup must be a number"):
            MultirateConfig.auto(speedup)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="auto_periods must be an AutoPeriods"):
        MultirateConfig((), auto_periods=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "group",
    [
        RateGroup("slow", ".*", 5),
        RateGroup("slow", ".*", idle="drift"),
        RateGroup("slow", ".*", random_subset=RandomSubset()),
    ],
)
def test_groups_with_settings_of_their_own_are_refused(group: RateGroup) -> None:
    with pytest.raises(ValueError, match=r"rate groups \['slow'\] have a period"):
        MultirateConfig((RateGroup("fast", "head"), group), auto_periods=AutoPeriods())
