"""Drift follows settings and state at every step: a resumed run is the uninterrupted one, whatever changes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import OneCycleLR
from transformers import TrainerCallback

from hf_multirate import Multirate, MultirateConfig, RateGroup, multirate_parameter_groups
from hf_multirate.optim.adam_drift import AdamDrift
from hf_multirate.optim.drift import SAMPLED
from tests.support.runs import CONFIG, assert_same, trainer_for, weights


LAST = 11


class Each(TrainerCallback):
    """Calls a function of the optimizer and the number of finished steps before every step."""

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        self.change = change

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.change(kwargs["optimizer"].optimizer, state.global_step)


def betas(optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["betas"] = (0.95 - 0.01 * step, 0.999 - 0.001 * step)


def decay_and_epsilon(optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group |= {"weight_decay": 0.1 * step, "eps": 1e-4 * (1 + step)}


def momentum(optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups:
        group["momentum"] = [0, 0.9, 0, 0.9, 0.9, 0, 0.5, 0, 0, 0.9, 0][step]


def count(optimizer: Optimizer, step: int) -> None:
    for state in optimizer.state.values() if step == 6 else ():
        state["step"].fill_(1.0)


def cleared(optimizer: Optimizer, step: int) -> None:
    for state in optimizer.state.values() if step == 6 else ():
        state.clear()


def replaced(optimizer: Optimizer, step: int) -> None:
    for state in optimizer.state.values() if step == 6 else ():
        state |= {"exp_avg": 0.5 * state["exp_avg"], "exp_avg_sq": 2 * state["exp_avg_sq"]}


def new_data(optimizer: Optimizer, step: int) -> None:
    for group in optimizer.param_groups if step == 6 else ():
        for parameter in group["params"]:
            parameter.data = 0.9 * parameter.data


def one_cycle(kind: type[Optimizer], **settings: Any) -> Any:
    def make(model: nn.Module) -> Any:
        optimizer = kind(model.parameters(), lr=1e-3, **settings)
        return optimizer, OneCycleLR(optimizer, max_lr=1e-2, total_steps=LAST + 1)

    return make


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "betas": (betas, {}),
    "betas, fused": (betas, {"optim": "adamw_torch_fused"}),
    "betas, rate in a tensor": (
        betas,
        {"optimizers": lambda model: (AdamW(model.parameters(), lr=torch.tensor(1e-2)), None)},
    ),
    "decay and epsilon": (decay_and_epsilon, {}),
    "momentum": (momentum, {"optimizers": lambda model: (SGD(model.parameters(), lr=0.05, momentum=0.9), None)}),
    "one cycle": (None, {"optimizers": one_cycle(AdamW)}),
    "one cycle of momentum": (None, {"optimizers": one_cycle(SGD, momentum=0.9)}),
    "one cycle, displacement": (None, {"optimizers": one_cycle(RMSprop, momentum=0.9)}),
    "count": (count, {}),
    "moments cleared": (cleared, {}),
    "moments replaced": (replaced, {}),
    "data replaced": (new_data, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(tmp_path: Path, case: str) -> None:
    change, settings = CASES[case]
    callbacks = [] if change is None else [Each(change)]

    def trainer(folder: Path) -> Any:
        words = {"max_steps": LAST, "save_strategy": "steps", "save_steps": 3, "callbacks": callbacks}
        return trainer_for(folder, CONFIG, **words, **settings)

    whole = trainer(tmp_path)
    whole.train()
    for step in (3, 6):  # long before a change, and right before it in mid-cycle
        again = trainer(tmp_path / "again")
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_same(weights(again), weights(whole), f"from {step}")


def test_amsgrad_turned_on_has_no_maximum_yet() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = AdamW(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("1", 3, idle="drift")).attach(model, optimizer) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            model(torch.ones(2, 3)).sum().backward()
            before = model[0].weight.detach().clone()
            optimizer.param_groups[0]["amsgrad"] = False
            optimizer.step()
            optimizer.zero_grad()
    optimizer.param_groups[0]["amsgrad"] = True
    rule, group, weight = AdamDrift(optimizer), optimizer.param_groups[0], model[0].weight
    with torch.no_grad():
        rule.prepare_drift([weight], group, {weight: 1.0})(0.1)
    assert not torch.equal(weight, before)


def test_a_basis_is_the_same_until_something_changes() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    rule, group, state = AdamDrift(optimizer), optimizer.param_groups[0], optimizer.state[parameter]
    first = rule.basis([parameter], group)
    assert rule.basis([parameter], group).same(first)
    assert not first.same(None)
    group["betas"] = (0.5, 0.9)
    second = rule.basis([parameter], group)
    assert not second.same(first)
    state["exp_avg"] = state["exp_avg"].clone()
    third = rule.basis([parameter], group)
    assert not third.same(second)
    state["step"].zero_()
    fourth = rule.basis([parameter], group)
    assert not fourth.same(third)
    parameter.data = parameter.data.double()
    assert not rule.basis([parameter], group).same(fourth)


class Complex(nn.Module):
    """A linear network of complex numbers, or of the pairs of real ones that they are."""

    def __init__(self, *, pairs: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = [0.3 * torch.randn(size, dtype=torch.cfloat) for size in ((6, 6), (6, SAMPLED // 5), (SAMPLED // 5,))]
        self.pairs = pairs
        self.layers = nn.ParameterList([nn.Parameter(torch.view_as_real(p) if pairs else p) for p in made])

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = inputs @ (torch.view_as_complex(layer) if self.pairs else layer)
        return inputs.abs().square().mean()


@pytest.mark.parametrize("idle", ["drift", "long_step"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AdamW, {"weight_decay": 0.5}),
        (AdamW, {"amsgrad": True, "foreach": False}),
        (Adam, {}),
        (SGD, {"momentum": 0.9}),
        (SGD, {}),
        (Adagrad, {}),
    ],
)
def test_complex_numbers_move_as_the_pairs_of_real_ones_that_they_are(kind: Any, settings: Any, idle: str) -> None:
    ends, levels = [], []
    for pairs in (False, True):
        model = Complex(pairs=pairs)
        config = MultirateConfig((RateGroup("fast", "2", 1), RateGroup("slow", ".*", 3, idle, lr_scale=0.5)))
        optimizer = kind(multirate_parameter_groups(model, config, lr=1e-4), **settings)
        with Multirate(config).attach(model, optimizer) as multirate:
            for step in range(12):
                multirate.begin_step(step)
                model(torch.randn(8, 6, dtype=torch.cfloat, generator=torch.Generator().manual_seed(step))).backward()
                optimizer.step()
                optimizer.zero_grad()
            levels.append(multirate.state_dict()["level"])
        ends.append([p.detach() if pairs else torch.view_as_real(p.detach()) for p in model.parameters()])
    assert levels[0] == levels[1]
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
