"""Other splits than by depth: weights against biases, a function, buffers of idle modules."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from hf_multirate import Multirate, MultirateConfig, RateGroup
from tests.support.runs import Watched, differ, trainer_for, weights
from tests.support.small import batch, network


def by_dimension(name: str, parameter: nn.Parameter) -> str | None:
    del name
    return "fast" if parameter.dim() == 1 else None


BIASES = MultirateConfig((RateGroup("fast", (), 1), RateGroup("slow", ".*", 3, idle="drift")), group_fn=by_dimension)


@pytest.mark.parametrize("family", ["bert", "llama", "resnet"])
def test_biases_and_norms_against_weights(tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_for(tmp_path, BIASES, family, kind=Watched)
    vectors = {name for name, parameter in trainer.model.named_parameters() if parameter.dim() == 1}
    assert set(trainer.multirate.partition["fast"]) == vectors
    before = weights(trainer)
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        trainer.train()
    assert [live == vectors for _, live in trainer.seen] == [False, True, True] * 2
    trainable = {name for name, _ in trainer.model.named_parameters()}
    assert differ(weights(trainer), before) >= trainable
    # Backward goes down to the lowest vector: said in advance, and where it is seen to cross idle modules.
    assert f"backward is skipped below {trainer.multirate.partition['fast'][0]}" in trainer.multirate.describe()
    assert ("backward runs through" in caplog.text) == (family != "bert")
    # The gradients of weights are saved, a third of the work.
    (cost,) = re.findall(r"predicted cost (\S+) of", trainer.multirate.describe())
    assert 0.5 < float(cost) < 0.7


def test_expression_for_biases_is_the_function(tmp_path: Path) -> None:
    groups = (RateGroup("fast", r"bias$|[nN]orm", 1), RateGroup("slow", ".*", 3, idle="drift"))
    one = trainer_for(tmp_path, MultirateConfig(groups))
    assert one.multirate.partition["fast"] == trainer_for(tmp_path, BIASES).multirate.partition["fast"]


def test_function_goes_before_patterns() -> None:
    def some(name: str, parameter: nn.Parameter) -> str | None:
        return {"0.weight": "slow", "5.bias": "rest"}.get(name)

    groups = (
        RateGroup("slow", (), 2, idle="drift"),
        RateGroup("top", "^5", 1),
        RateGroup("rest", ".*", 4, idle="drift"),
    )
    partition = Multirate(MultirateConfig(groups, group_fn=some)).assign(network()).partition
    assert partition["slow"] == ("0.weight",)
    assert partition["top"] == ("5.weight",)
    assert "5.bias" in partition["rest"]


def test_function_that_names_no_group() -> None:
    config = MultirateConfig.two_rate("^5", 2, group_fn=lambda name, parameter: "fats", idle="drift")
    with pytest.raises(ValueError, match=r"group_fn\('0.weight', ...\) returned 'fats'.*one of \['fast', 'slow'\]"):
        Multirate(config).assign(network())


def test_group_that_the_function_never_names() -> None:
    groups = (RateGroup("none", (), 1), RateGroup("all", ".*", 1))
    config = MultirateConfig(groups, group_fn=lambda name, parameter: None)
    with pytest.raises(ValueError, match=r"'none' has no pattern, and group_fn returned its name for none of 8"):
        Multirate(config).assign(network())


def test_function_is_named_in_the_text_and_cannot_be_read_from_it() -> None:
    values = BIASES.to_dict()
    assert values["group_fn"] == f"{__name__}:by_dimension"
    with pytest.raises(ValueError, match=f"'{__name__}:by_dimension'.*in Python"):
        MultirateConfig.from_dict(values)
    assert (
        MultirateConfig.two_rate(group_fn=print, idle="drift").to_dict()["group_fn"]
        == "builtins:builtin_function_or_method"
    )


def test_checkpoint_with_a_function(tmp_path: Path, warnings_of: Any) -> None:
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2}
    one = trainer_for(tmp_path / "one", BIASES, **settings)
    one.train()
    other = trainer_for(tmp_path / "two", BIASES, **settings)
    other.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-2"))
    assert not differ(weights(one), weights(other))


@pytest.mark.parametrize("inactive_forward", ["train", "eval"])
@pytest.mark.parametrize("inactive_buffers", ["update", "freeze"])
def test_buffers_of_idle_modules(inactive_buffers: str, inactive_forward: str) -> None:
    model = nn.Sequential(*network()[:3], nn.BatchNorm1d(10), *network()[3:])
    optimizer = SGD(model.parameters(), lr=0.1)
    config = MultirateConfig.two_rate(
        ["^3", "^4", "^6"], 2, inactive_buffers=inactive_buffers, inactive_forward=inactive_forward, idle="drift"
    )
    moved = []
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(4):
            before = {name: buffer.clone() for name, buffer in model.named_buffers()}
            multirate.begin_step(step)
            model(batch(step)[0]).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            moved.append({name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])})
    everything = {name for name, _ in model.named_buffers()}
    live = {name for name in everything if name.startswith("3")}
    assert len(live) == 3
    assert len(everything) == 6
    fast_only = live if inactive_buffers == "freeze" else everything
    assert moved == [everything, fast_only, everything, fast_only]


def test_frozen_buffers_with_a_trainer(tmp_path: Path) -> None:
    results = []
    for rule in ("update", "freeze"):
        trainer = trainer_for(
            tmp_path, MultirateConfig.two_rate("last:1", 3, inactive_buffers=rule, idle="drift"), "resnet"
        )
        trainer.train()
        counts = {name: int(b) for name, b in trainer.model.named_buffers() if name.endswith("num_batches_tracked")}
        results.append((set(counts.values()), counts))
    assert results[0][0] == {6}
    assert results[1][0] == {2, 6}
    assert results[1][1]["resnet.embedder.embedder.normalization.num_batches_tracked"] == 2


def test_head_tied_to_an_embedding_is_slow_unless_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hf_multirate"):
        trainer = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 3, idle="drift"), "gpt2-lm")
    assert "transformer.wte.weight" in trainer.multirate.partition["slow"]
    assert "both get a gradient every 3 steps" in caplog.text
    assert {record.levelname for record in caplog.records} == {"INFO"}
    caplog.clear()
    config = MultirateConfig.two_rate([r"h\.3\.", "ln_f", "wte"], 3, idle="drift")
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        trainer_for(tmp_path, config, "gpt2-lm")
    assert "backward runs down to it at every step" in caplog.text
