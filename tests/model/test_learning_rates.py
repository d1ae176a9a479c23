"""Factors on learning rates: of groups, of the head, and by depth."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hf_multirate import MultirateConfig, RateGroup
from hf_multirate.model.learning_rates import learning_rate_factors
from hf_multirate.model.partition import settle
from tests.support.runs import example


def factors(config: MultirateConfig, model: nn.Module) -> dict[str, float]:
    settled, partition = settle(config, model)
    by_parameter = learning_rate_factors(settled, partition.parameters(model), model)
    return {name: by_parameter[p] for name, p in model.named_parameters()}


def test_without_settings_every_factor_is_one() -> None:
    model, _ = example("bert", 4)
    assert set(factors(MultirateConfig(), model).values()) == {1.0}


def test_head_times_depth_times_group() -> None:
    model, _ = example("bert", 4)
    groups = (RateGroup("top", "last:1", 1, lr_scale=3.0), RateGroup("rest", ".*", 2))
    found = factors(MultirateConfig(groups, head_lr_scale=10, lr_decay=0.5), model)
    blocks = [next(f for name, f in found.items() if f"layer.{i}." in name) for i in range(4)]
    assert blocks == [0.125, 0.25, 0.5, 3.0]
    assert found["classifier.weight"] == 30.0
    assert found["bert.pooler.dense.weight"] == 3.0
    assert found["bert.embeddings.word_embeddings.weight"] == 0.0625


@pytest.mark.parametrize(("family", "name"), [("vit", "classifier.weight"), ("resnet", "classifier.1.weight")])
def test_heads_of_other_families(family: str, name: str) -> None:
    model, _ = example(family, 4)
    found = factors(MultirateConfig.off(head_lr_scale=10), model)
    assert {key for key, factor in found.items() if factor == 10.0} == {name, name.replace("weight", "bias")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_lr_scale": 10}, "head_lr_scale is 10, but the head is unknown: .*Set head_lr_scale=1"),
        ({"lr_decay": 0.8}, r"lr_decay is 0\.8, but the depth of the parameters is unknown: .*Remove lr_decay"),
    ],
)
def test_a_model_without_head_or_blocks_is_an_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        factors(MultirateConfig.off(**settings), nn.Linear(2, 2))


def test_a_tied_head_is_an_error() -> None:
    model, _ = example("gpt2-lm", 4)
    with pytest.raises(ValueError, match=r"head_lr_scale is 10.*is tied"):
        factors(MultirateConfig.off(head_lr_scale=10), model)
