"""Settings in which multirate training has to vanish, bit for bit, and ones in which it must not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler

from hf_multirate import MultirateConfig, RateGroup
from tests.support.runs import FIVE, assert_same, differ, history, trainer_for, weights


Plain = Callable[[str, str], dict[str, Any]]
# The argument has a new name in transformers 5 and its old one works on both lines.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


class Swapping(torch.optim.SGD):
    """Looks like an optimizer with other weights in evaluation: refused unless every step is a full step."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def own_optimizers(model: nn.Module) -> tuple[Optimizer, LRScheduler]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return optimizer, ExponentialLR(optimizer, 0.9)


def smoothed(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    del num_items_in_batch
    return nn.functional.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), label_smoothing=0.2)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    # Six micro-batches per epoch: the second and last window of an epoch holds two.
    "accumulation": {"gradient_accumulation_steps": 4, "max_steps": 4},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "compute_loss_func": {"compute_loss_func": smoothed},
    "clip": {"max_grad_norm": 1e-3},
    "no clip": {"max_grad_norm": 0.0},
    "bf16": {"bf16": True},
    "schedule": {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "optimizers": {"optimizers": own_optimizers},
    "optimizer class": {"optimizer_cls_and_kwargs": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5})},
    "refused optimizer": {"optimizer_cls_and_kwargs": (Swapping, {"lr": 0.05})},
    **{f"optim {name}": {"optim": name} for name in ("sgd", "adafactor", "adamw_torch", "adamw_torch_fused")},
}
FAMILIES = ("bert", "gpt2-lm", "resnet")
# ResNet has no gradient checkpointing in transformers.
CHECKPOINTED = [(family, {"gradient_checkpointing": True}) for family in ("bert", "gpt2-lm")]
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}
LAWS = [
    *(
        pytest.param(family, settings, id=f"{family}-{name}")
        for family in FAMILIES
        for name, settings in SETTINGS.items()
    ),
    *(pytest.param(family, settings, id=f"{family}-checkpointing") for family, settings in CHECKPOINTED),
    pytest.param("gpt2-lm", {"neftune_noise_alpha": 5.0}, id="neftune"),
    pytest.param("bert", COMPILED, id="compiled", marks=pytest.mark.filterwarnings("ignore")),
    pytest.param("bert", {"torch_empty_cache_steps": 2}, id="emptied caches"),
]

FULL = "last:1"
EVERY_STEP = {
    "off": MultirateConfig.off(),
    "period 1": MultirateConfig.two_rate(FULL, period=1, idle="drift"),
    "period 1, long step": MultirateConfig.two_rate(FULL, period=1, idle="long_step"),
    "three groups": MultirateConfig(
        (
            RateGroup("top", FULL, 1),
            RateGroup("attention", ["attention"], 1),
            RateGroup("rest", ".*", 1, idle="long_step"),
        )
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """Results of standard training with default settings, each trained once."""

    @functools.cache
    def train(family: str, optim: str) -> dict[str, Any]:
        return results(tmp_path_factory.mktemp("plain"), None, family, optim=optim)

    return train


def _is_measured(key: str) -> bool:
    """Whether it is a figure on training that is no part of it; sums over groups are in the order of the groups."""
    return key.startswith("multirate/") and key != "multirate/phase"


def results(folder: Path, config: MultirateConfig | None, family: str, **settings: Any) -> dict[str, Any]:
    trainer = trainer_for(folder, config, family, **settings)
    trainer.train()
    entries = [{k: v for k, v in entry.items() if not _is_measured(k)} for entry in history(trainer)]
    assert len(entries) == trainer.args.max_steps
    wanted = {"loss", "learning_rate"} | ({"grad_norm"} if FIVE or trainer.args.max_grad_norm else set())
    assert all(entry.keys() >= wanted for entry in entries)
    return {"weights": weights(trainer), "history": entries, "optimizer": trainer.optimizer.state_dict()}


def by_name(found: dict[str, Any], idle: str) -> dict[str, Any]:
    """Without the state of the optimizer for long steps: it is by position, which depends on the rate groups."""
    return {key: value for key, value in found.items() if key != "optimizer" or idle != "long_step"}


@pytest.mark.parametrize(("family", "settings"), LAWS)
def test_period_one_is_standard_training(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    wanted = results(tmp_path, None, family, **settings)
    assert_same(results(tmp_path, EVERY_STEP["period 1"], family, **settings), wanted)


def test_optimizer_that_other_periods_refuse(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate(FULL, 2, idle="drift"), **SETTINGS["refused optimizer"])
    with pytest.raises(ValueError, match="Swapping swaps the weights"):
        trainer.train()


@pytest.mark.parametrize("name", [name for name in EVERY_STEP if name != "period 1"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "rmsprop"])
def test_other_ways_to_say_every_step(tmp_path: Path, plain: Plain, name: str, optim: str) -> None:
    got = results(tmp_path, EVERY_STEP[name], "bert", optim=optim)
    for entry in got["history"]:
        entry.pop("multirate/phase", None)
    assert_same(got, plain("bert", optim))


@pytest.mark.parametrize("idle", ["drift", "long_step"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor"])
def test_order_of_disjoint_groups_does_not_matter(tmp_path: Path, optim: str, idle: str) -> None:
    groups = (
        RateGroup("fast", ["pooler", "classifier"], 1),
        RateGroup("middle", ["encoder"], 2, idle),
        RateGroup("slow", ["embeddings"], 4, idle),
    )
    first, *others = (
        by_name(results(tmp_path, MultirateConfig(order), "bert", optim=optim), idle)
        for order in (groups, groups[::-1], (groups[1], groups[0], groups[2]))
    )
    for other in others:
        assert_same(other, first)


@pytest.mark.parametrize("idle", ["drift", "long_step"])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adafactor"])
def test_groups_of_one_period_are_one_group(tmp_path: Path, optim: str, idle: str) -> None:
    apart = MultirateConfig(
        (
            RateGroup("a", ["classifier"], 1),
            RateGroup("b", ["pooler"], 1),
            RateGroup("c", ["embeddings"], 3, idle),
            RateGroup("d", [".*"], 3, idle),
        )
    )
    together = MultirateConfig.two_rate(["classifier", "pooler"], 3, idle)
    one, other = (by_name(results(tmp_path, config, "bert", optim=optim), idle) for config in (apart, together))
    assert_same(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_ladder_of_two_parts_is_two_rates(tmp_path: Path, family: str) -> None:
    blocks = 3 if family == "resnet" else 4
    two = MultirateConfig.two_rate(f"last:{blocks // 2}", 5, idle="drift")
    one, other = (results(tmp_path, config, family) for config in (MultirateConfig.ladder([1, 5], idle="drift"), two))
    assert_same(one, other)


@pytest.mark.parametrize("idle", ["drift", "long_step"])
@pytest.mark.parametrize("optim", ["sgd", "adafactor", "adamw_torch_fused"])
@pytest.mark.parametrize("family", FAMILIES)
def test_period_five_differs_from_standard_training(
    tmp_path: Path, plain: Plain, family: str, optim: str, idle: str
) -> None:
    config = MultirateConfig.two_rate(FULL, 5, idle)
    changed = differ(results(tmp_path, config, family, optim=optim)["weights"], plain(family, optim)["weights"])
    parameters = {name for name, _ in trainer_for(tmp_path, None, family).model.named_parameters()}
    assert parameters - changed == set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.two_rate(FULL, 5, "long_step", turns="fixed"),
        ),
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.two_rate(FULL, 4, turns="fixed", idle="drift"),
        ),
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.two_rate("last:2", 5, turns="fixed", idle="drift"),
        ),
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.two_rate(FULL, 5, drift_factor=1.0, turns="fixed", idle="drift"),
        ),
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.ladder([1, 2, 5], turns="fixed", idle="drift"),
        ),
        (
            MultirateConfig.two_rate(FULL, 5, turns="fixed", idle="drift"),
            MultirateConfig.two_rate(FULL, 5, turns="fixed"),
        ),
    ],
)
def test_configs_differ(tmp_path: Path, one: MultirateConfig, other: MultirateConfig) -> None:
    first, second = (results(tmp_path, config, "bert")["weights"] for config in (one, other))
    assert differ(first, second) >= {"bert.encoder.layer.0.output.dense.weight", "classifier.weight"}
