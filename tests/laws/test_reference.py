"""The package computes what reference.py defines: SGD, Adam and AdamW with drift, long steps and frozen groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RateGroup, multirate_parameter_groups
from tests.support.reference import Gradient, Tensors, algorithm_1, multirate_adamw
from tests.support.runs import arguments


STEPS, RATE, VOCABULARY = 50, 0.02, 11
FAST = ("norm", "top")
Rate = Callable[[int], float]


class Tied(nn.Module):
    """Embedding, BatchNorm, dropout, and an output tied to the embedding; equal inputs draw equal dropout masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh())
        self.norm = nn.BatchNorm1d(8)
        self.top = nn.Linear(8, 6)
        self.output = nn.Linear(6, VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(int(ids.sum()))
        hidden = self.top(self.norm(self.body(self.embedding(ids))))
        logits = self.output(nn.functional.dropout(hidden, 0.2, self.training))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def batches(size: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(VOCABULARY, (STEPS, size), generator=generator)
    return [{"ids": row, "labels": (3 * row + 1) % VOCABULARY} for row in ids]


def cosine(step: int) -> float:
    return RATE * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))


def constant(step: int) -> float:
    del step
    return RATE


def multirate_loop(model: nn.Module, optimizer: Optimizer, config: MultirateConfig, rate: Rate) -> Tensors:
    schedule = LambdaLR(optimizer, lambda step: rate(step) / RATE)
    with Multirate(config).attach(model, optimizer) as multirate:
        for step, batch in enumerate(batches()):
            multirate.begin_step(step)
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return {name: value.detach() for name, value in model.named_parameters()}


def expected(algorithm: Callable[..., Tensors], model: nn.Module, **settings: Any) -> Tensors:
    """Run ``algorithm`` on the parameters of ``model``, whose buffers move as they do in training."""
    theta = {name: value.detach().clone() for name, value in model.named_parameters()}
    theta_F = {name: theta.pop(name) for name in list(theta) if name.startswith(FAST)}
    assert theta
    assert theta_F
    return algorithm(theta, theta_F, gradient_of(model), steps=STEPS, **settings)


def gradient_of(model: nn.Module) -> Gradient:
    data = batches()

    def gradient(n: int, theta: Tensors) -> Tensors:
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        loss = torch.func.functional_call(model, leaves, kwargs=data[n])["loss"]
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    return gradient


def residual(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def config(period: int, idle: str = "drift", **settings: Any) -> MultirateConfig:
    return MultirateConfig.two_rate(
        [f"^{name}" for name in FAST], period, idle, **{"inactive_forward": "train", **settings}, turns="fixed"
    )


SGD_SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "plain": {"momentum": 0.0},
    "decay": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    "for-loop": {"momentum": 0.9, "foreach": False},
    "fused": {"momentum": 0.9, "fused": True},
}


# Learning rate, idle rule and period.
SGD_RUNS = [(constant, "drift", 4), (cosine, "drift", 5), (cosine, "long_step", 4)]


@pytest.mark.parametrize(("rate", "idle", "k"), SGD_RUNS)
@pytest.mark.parametrize("name", SGD_SETTINGS)
def test_sgd_is_algorithm_1_in_float64(name: str, rate: Rate, idle: str, k: int) -> None:
    settings = SGD_SETTINGS[name]
    model = Tied().double()
    literal = {key: settings[key] for key in settings.keys() & {"weight_decay", "nesterov"}}
    literal |= {"mu": settings["momentum"], "long_step": idle == "long_step"}
    wanted = expected(algorithm_1, deepcopy(model), k=k, h=lambda n: k * rate(n), **literal)
    chosen = config(k, idle, inactive_forward=None)
    optimizer = SGD(multirate_parameter_groups(model, chosen, lr=RATE), **settings)
    got = multirate_loop(model, optimizer, chosen, rate)
    assert residual(got, wanted) < 1e-10


ADAM_SETTINGS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "for-loop": (AdamW, {"foreach": False}),
    "foreach": (AdamW, {"foreach": True}),
    "fused": (AdamW, {"fused": True}),
    "amsgrad": (AdamW, {"amsgrad": True}),
    "betas": (AdamW, {"betas": (0.5, 0.7), "eps": 1e-3}),
    "adam": (Adam, {}),
}


# By default each tensor finds its own factor; 1.0 is the undamped form.
ADAM_RUNS = [
    (constant, "drift", 4, 1.0),
    (constant, "drift", 4, None),
    (cosine, "drift", 5, 0.3),
    (cosine, "long_step", 4, None),
]


@pytest.mark.parametrize(("rate", "idle", "k", "drift_factor"), ADAM_RUNS)
@pytest.mark.parametrize("name", ADAM_SETTINGS)
def test_adam_is_its_literal_form_in_float64(
    name: str, rate: Rate, idle: str, k: int, drift_factor: float | None
) -> None:
    kind, settings = ADAM_SETTINGS[name]
    settings = {"weight_decay": 0.1, **settings}
    model = Tied().double()
    literal = {key: value for key, value in settings.items() if key not in ("foreach", "fused")}
    literal |= {"long_step": idle == "long_step", "coupled": kind is Adam}
    literal["s"] = drift_factor
    wanted = expected(multirate_adamw, deepcopy(model), k=k, lr=rate, **literal)
    chosen = config(k, idle, drift_factor="auto" if drift_factor is None else drift_factor)
    optimizer = kind(multirate_parameter_groups(model, chosen, lr=RATE), **settings)
    got = multirate_loop(model, optimizer, chosen, rate)
    assert residual(got, wanted) < 1e-10


@pytest.mark.parametrize("drift_steps", [0, 1, 3])
@pytest.mark.parametrize(("kind", "momentum"), [(SGD, {"momentum": 0.9}), (AdamW, {})])
def test_limited_drift_is_its_literal_form(kind: type[Optimizer], momentum: dict[str, Any], drift_steps: int) -> None:
    model = Tied().double()
    literal: dict[str, Any] = {"k": 4, "weight_decay": 0.1, "drift": drift_steps}
    if kind is SGD:
        wanted = expected(algorithm_1, deepcopy(model), h=lambda n: 4 * cosine(n), mu=0.9, **literal)
    else:
        wanted = expected(multirate_adamw, deepcopy(model), lr=cosine, s=None, **literal)
    optimizer = kind(model.parameters(), lr=RATE, weight_decay=0.1, **momentum)
    groups = (
        RateGroup("fast", [f"^{name}" for name in FAST], 1),
        RateGroup("slow", ".*", 4, "drift", drift_steps) if drift_steps else RateGroup("slow", ".*", 4),
    )
    chosen = MultirateConfig(groups, inactive_forward="train", turns="fixed")
    got = multirate_loop(model, optimizer, chosen, cosine)
    assert residual(got, wanted) < 1e-10


# What the equalities above would not notice if it made no difference.
@pytest.mark.parametrize(
    ("algorithm", "one", "other"),
    [
        (algorithm_1, {}, {"k": 5, "h": lambda n: 5 * cosine(n)}),
        (algorithm_1, {}, {"h": lambda n: 4 * cosine(n - n % 4)}),
        (algorithm_1, {}, {"weight_decay": 0.05}),
        (algorithm_1, {}, {"nesterov": True}),
        (algorithm_1, {}, {"long_step": True}),
        (algorithm_1, {}, {"drift": 2}),
        (multirate_adamw, {}, {"drift": 2}),
        (multirate_adamw, {}, {"lr": lambda n: cosine(n - n % 4)}),
        (multirate_adamw, {"weight_decay": 0.1}, {"weight_decay": 0.1, "coupled": True}),
        (multirate_adamw, {}, {"amsgrad": True, "betas": (0.9, 0.9)}),
        (multirate_adamw, {}, {"long_step": True}),
        (multirate_adamw, {}, {"s": 0.5}),
    ],
)  # fmt: skip
def test_settings_matter(algorithm: Callable[..., Tensors], one: dict[str, Any], other: dict[str, Any]) -> None:
    model = Tied().double()
    base = {"k": 4, "h": lambda n: 4 * cosine(n), "mu": 0.9} if algorithm is algorithm_1 else {"k": 4, "lr": cosine}
    results = [expected(algorithm, deepcopy(model), **base | settings) for settings in (one, other)]
    assert residual(*results) > 1e-4


def test_trainer_is_algorithm_1_in_float32(tmp_path: Path) -> None:
    class InOrder(MultirateTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    model = Tied()
    wanted = expected(
        algorithm_1, deepcopy(model), k=4, h=lambda n: 4 * RATE * (1 - n / STEPS), mu=0.9, weight_decay=0.05
    )
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches() for i in range(6)]
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=0.05)
    args = arguments(tmp_path, max_steps=STEPS, per_device_train_batch_size=6, max_grad_norm=0.0)
    schedule = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    trainer = InOrder(
        model, args, train_dataset=rows, optimizers=(optimizer, schedule), multirate=config(4, inactive_forward=None)
    )
    trainer.train()
    assert residual({name: value.detach() for name, value in model.named_parameters()}, wanted) < 1e-6
