"""Several rates by depth: which parts are live when, how deep backward goes, and what users can ask for wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_multirate import Multirate, MultirateConfig, MultirateTrainingArguments, RateGroup
from hf_multirate.optim.update_group import UpdateGroup
from tests.support.runs import Watched, differ, example, phases, trainer_for, weights


PERIODS = (1, 2, 4)
LADDER = MultirateConfig.ladder(PERIODS, turns="fixed", idle="drift")


@pytest.mark.parametrize(("family", "stack"), [("bert", "bert.encoder.layer"), ("gpt2-lm", "transformer.h")])
def test_backward_goes_as_deep_as_the_ruler_sequence(tmp_path: Path, family: str, stack: str) -> None:
    trainer = trainer_for(tmp_path, LADDER, family, kind=Watched, max_steps=8)
    recorded: dict[int, list[bool]] = {block: [] for block in range(4)}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        recorded[blocks[module]].append(hidden.grad_fn is not None)

    blocks = {trainer.model.get_submodule(f"{stack}.{block}"): block for block in recorded}
    for module in blocks:
        module.register_forward_hook(note)
    trainer.train()
    partition = trainer.multirate.partition
    for step, live in trainer.seen:
        wanted = [
            name for part, period in enumerate(PERIODS, 1) if step % period == 0 for name in partition[f"part {part}"]
        ]
        assert live == set(wanted), step
    assert phases(trainer) == [0, 1, 2, 3, 0, 1, 2, 3]
    # Four blocks in three parts: the lowest has two of them.
    for block, period in ((3, 1), (2, 2), (1, 4), (0, 4)):
        assert recorded[block] == [step % period == 0 for step in range(8)]
    assert len(set(trainer.saved[:4])) == 3
    assert trainer.multirate.timing.summary()["full_steps"] == 2


def test_description_has_a_line_for_each_depth(tmp_path: Path) -> None:
    lines = trainer_for(tmp_path, LADDER).multirate.describe().splitlines()
    edges = [line for line in lines if "backward is skipped below" in line]
    assert len(edges) == 2
    assert edges[0].startswith("with part 1 live: backward is skipped below bert.encoder.layer.3.")
    assert edges[1].startswith("with part 1, part 2 live: backward is skipped below bert.encoder.layer.2.")


DRIFT = {"idle": "drift"}
FREEZE = {"idle": "freeze"}


@pytest.mark.parametrize(("settings", "kept"), [(DRIFT, 2), (DRIFT | {"drift_steps": 2}, 2), (FREEZE, 0)])
def test_a_frozen_group_keeps_no_displacement(settings: dict[str, Any], kept: int) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.1)
    config = MultirateConfig.two_rate("1", 3, **settings, turns="fixed")
    with Multirate(config).attach(model, optimizer) as multirate:
        multirate.begin_step(0)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert len(multirate.state_dict()["displacement"]) == kept


@pytest.mark.parametrize(("idle", "steps"), [("drift", {0, 2, 4, 6, 8}), ("freeze", {0, 8})])
def test_products_of_groups_that_freeze_are_computed_for_the_log_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: str, steps: set[int]
) -> None:
    looked = set()
    products = UpdateGroup.gradient_update_products
    trainer = trainer_for(tmp_path, MultirateConfig.ladder(PERIODS, idle, turns="fixed"), max_steps=9)

    def noting(self: UpdateGroup, *args: Any) -> Any:
        if self.index > 0:
            looked.add(trainer.multirate.step)
        return products(self, *args)

    monkeypatch.setattr(UpdateGroup, "gradient_update_products", noting)
    trainer.train()
    assert looked == steps


def test_drift_steps_reach_the_trainer(tmp_path: Path) -> None:
    outcomes = []
    for idle in (("drift", None), ("drift", 3), ("drift", 1), ("freeze", None)):
        groups = (RateGroup("fast", "last:1", 1), RateGroup("slow", ".*", 4, *idle))
        trainer = trainer_for(tmp_path, MultirateConfig(groups, drift_factor=1.0, turns="fixed"))
        trainer.train()
        outcomes.append(weights(trainer))
    assert not differ(outcomes[0], outcomes[1]), "three idle steps in a cycle of four"
    for one, other in ((1, 2), (2, 3)):
        assert differ(outcomes[one], outcomes[other])


def test_ladder_on_the_command_line(tmp_path: Path) -> None:
    def parse(**settings: Any) -> MultirateConfig:
        return MultirateTrainingArguments(str(tmp_path), report_to=[], **settings).to_multirate_config()

    assert parse(multirate_fast="ladder:1,2,4", multirate_idle="drift", multirate_turns="fixed") == LADDER
    assert parse(multirate_fast="ladder:1,3", multirate_idle="long_step") == MultirateConfig.ladder(
        [1, 3], "long_step"
    )
    frozen = parse(multirate_fast="ladder:1,2,4")
    assert frozen == MultirateConfig.ladder([1, 2, 4], idle="freeze")
    assert {group.idle for group in frozen.groups} == {"freeze"}
    limited = parse(multirate_fast="ladder:1,2,4", multirate_idle="drift", multirate_drift_steps=2)
    assert {group.drift_steps for group in limited.groups} == {2}
    for fast, period, words in (
        ("ladder:1,2", 5, "Remove multirate_period"),
        ("ladder:1,x", None, "integers separated by commas.*'ladder:1,x'"),
        ("ladder:", None, "integers separated by commas.*'ladder:'"),
        ("ladder:2,4", None, "no rate group has period 1"),
    ):
        with pytest.raises(ValueError, match=words):
            parse(multirate_fast=fast, multirate_period=period)


def test_more_parts_than_blocks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"5 parts of the 4 blocks of 'bert.encoder.layer'; use at most 4"):
        trainer_for(tmp_path, MultirateConfig.ladder([1, 2, 4, 8, 16], idle="drift"))


def test_the_default_ladder_of_two_blocks_names_no_frozen_group(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 64, "num_labels": 4}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=2, **sizes))
    trainer_for(tmp_path, MultirateConfig(), max_steps=1, model_init=lambda: model).train()
    assert "the model has 2 blocks: the periods [1, 2] are used" in caplog.text
    assert "are frozen" not in caplog.text


def test_parts_of_frozen_parameters_only_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def frozen() -> nn.Module:
        model, _ = example("bert")
        model.bert.embeddings.requires_grad_(False)
        model.bert.encoder.layer[0].requires_grad_(False)
        return model

    trainer = trainer_for(tmp_path, MultirateConfig.ladder([1, 2, 4, 8], idle="drift"), model_init=frozen)
    trainer.train()
    assert list(trainer.multirate.partition) == ["part 1", "part 2", "part 3"]
    assert "all parameters of the rate groups ['part 4'] are frozen" in caplog.text
