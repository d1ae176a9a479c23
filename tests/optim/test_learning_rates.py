"""Learning rates of rate groups around a step of the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from hf_multirate import Multirate, MultirateConfig, RateGroup, multirate_parameter_groups


PERIOD = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))


def config(idle: str = "freeze", slow_scale: float = 0.5) -> MultirateConfig:
    groups = (RateGroup("fast", "^2", 1, lr_scale=4.0), RateGroup("slow", ".*", PERIOD, idle, lr_scale=slow_scale))
    return MultirateConfig(groups, turns="fixed", inactive_forward="train")


def steps(multirate: Multirate, model: nn.Module, optimizer: Optimizer, number: int = 2 * PERIOD) -> Iterator[int]:
    for step in range(number):
        multirate.begin_step(step)
        torch.manual_seed(step)
        model(torch.randn(8, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        yield step


def ends(optimizer: Optimizer, model: nn.Module, chosen: MultirateConfig) -> list[torch.Tensor]:
    with Multirate(chosen).attach(model, optimizer) as multirate:
        list(steps(multirate, model, optimizer))
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("idle", ["freeze", "drift", "long_step"])
@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_rates_of_the_optimizer_and_around_its_step_are_the_same(kind: Any, idle: str) -> None:
    """An optimizer with a parameter group for each rate group, but without the factors, ends at the same weights."""
    one, other, chosen = network(), network(), config(idle)
    ours = kind(multirate_parameter_groups(one, chosen, lr=0.01))
    theirs = kind([{"params": other[2].parameters()}, {"params": other[0].parameters()}], lr=0.01)
    rates = [group["lr"] for group in theirs.param_groups]
    for a, b in zip(ends(ours, one, chosen), ends(theirs, other, chosen), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert [group["lr"] for group in theirs.param_groups] == rates
    for a, b in zip(network().parameters(), one.parameters(), strict=True):
        assert not torch.equal(a, b)


def test_a_long_step_is_a_step_at_the_rate_times_the_period() -> None:
    model, by_hand = network(), network()
    chosen = config("long_step", slow_scale=1.0)
    ends(SGD(multirate_parameter_groups(model, chosen, lr=0.01)), model, chosen)
    optimizer = SGD([{"params": by_hand[2].parameters(), "lr": 0.04}, {"params": by_hand[0].parameters()}], lr=0.01)
    for step in range(2 * PERIOD):
        torch.manual_seed(step)
        by_hand(torch.randn(8, 2)).square().mean().backward()
        optimizer.param_groups[1]["lr"] = 0.0 if step % PERIOD else 0.01 * PERIOD
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_schedulers_see_the_rates() -> None:
    model, chosen = network(), config("long_step")
    optimizer = SGD(multirate_parameter_groups(model, chosen, lr=1.0))
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    plateau = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    with Multirate(chosen).attach(model, optimizer) as multirate:
        for step in steps(multirate, model, optimizer, 4):
            assert multirate.learning_rates() == {
                "fast": (4 / (1 + step),) * 2,
                "slow": (0.5 / (1 + step),) * 2,
            }
            schedule.step()
        plateau.step(1.0)
        plateau.step(2.0)
        assert multirate.learning_rates()["fast"][0] == pytest.approx(0.08)


def test_rates_are_restored_after_a_step_that_fails() -> None:
    class Failing(SGD):
        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise RuntimeError("it failed")
            return super().step(closure)

        fails = False

    model, chosen = network(), config("long_step", slow_scale=1.0)
    optimizer = Failing(multirate_parameter_groups(model, chosen, lr=1.0))
    multirate = Multirate(chosen).attach(model, optimizer)
    Failing.fails = True
    with pytest.raises(RuntimeError, match="it failed"):
        list(steps(multirate, model, optimizer))
    multirate.detach()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 4.0]


@pytest.mark.parametrize(
    "chosen", [config(), config("long_step", 4.0), MultirateConfig.two_rate("^2", 3, "long_step")]
)
def test_groups_that_cut_across_rates_are_an_error_that_names_the_function(chosen: MultirateConfig) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"parameter group 0 .*'2.weight'.*multirate_parameter_groups\(model, config"):
        Multirate(chosen).attach(model, SGD(model.parameters(), lr=0.1))


def test_other_rates_than_those_in_the_optimizer_are_those_of_the_configuration() -> None:
    model = network()
    optimizer = SGD(multirate_parameter_groups(model, config(), lr=1.0))
    with Multirate(config(slow_scale=2.0)).attach(model, optimizer) as multirate:
        assert multirate.learning_rates() == {"fast": (4.0, 4.0), "slow": (2.0, 2.0)}


def test_a_tensor_as_learning_rate_is_kept() -> None:
    model, chosen = network(), config("long_step", slow_scale=1.0)
    optimizer = AdamW(multirate_parameter_groups(model, chosen, lr=0.01), capturable=False)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]))
    rates = [group["lr"] for group in optimizer.param_groups]
    ends(optimizer, model, chosen)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
