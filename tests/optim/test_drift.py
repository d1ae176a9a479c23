"""Drift and its look back, against the formulas written out, also for tensors that are sampled or of odd layout."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_multirate.optim import adam_drift
from hf_multirate.optim.adam_drift import AdamDrift
from hf_multirate.optim.drift import COLUMNS, SAMPLED, DisplacementDrift, SGDDrift
from hf_multirate.optim.update_group import choose_rule
from tests.support.waits import Waits


def _stepped(optimizer_class: type, tensor: torch.Tensor, **settings: object) -> tuple[nn.Parameter, object]:
    parameter = nn.Parameter(tensor)
    optimizer = optimizer_class([parameter], lr=0.1, **settings)
    for _ in range(2):
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    parameter.grad = torch.randn_like(parameter)
    return parameter, optimizer


def _adam_update(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    state, second = optimizer.state[parameter], "exp_avg_sq"
    if optimizer.param_groups[0]["amsgrad"]:
        second = "max_exp_avg_sq"
    return (state["exp_avg"] / (1 - 0.9**2)) / ((state[second] / (1 - 0.999**2)).sqrt() + 1e-8)


SHAPES = {
    "large": lambda: torch.randn(3, SAMPLED - 5),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 4),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_drifts_by_factor_times_its_last_update_and_decays(shape: str, amsgrad: bool) -> None:
    parameter, optimizer = _stepped(torch.optim.AdamW, SHAPES[shape](), weight_decay=0.5, amsgrad=amsgrad)
    expected = parameter * (1 - 0.1 * 2 * 0.5) - 0.1 * 2 * 0.25 * _adam_update(parameter, optimizer)
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    with torch.no_grad():
        AdamDrift(optimizer).prepare_drift([parameter], optimizer.param_groups[0], {parameter: 0.25})(0.2)
    torch.testing.assert_close(parameter, expected)
    assert all(torch.equal(state[key], value) for key, value in optimizer.state[parameter].items())


class Fetches(TorchDispatchMode):
    """How often a single number is fetched: each time, a device that has its work queued is waited for."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_parameters_of_different_step_counts_drift_by_their_own_and_counts_are_fetched_together() -> None:
    parameters = [nn.Parameter(torch.randn(5)) for _ in range(6)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for step in range(3):
        for i, parameter in enumerate(parameters):  # steps 0 to 2 for the first two, 1 to 2 and 2 for the next
            parameter.grad = torch.randn(5) if i // 2 <= step else None
        optimizer.step()
    group = optimizer.param_groups[0]
    with torch.no_grad(), Fetches() as fetches:
        course = AdamDrift(optimizer).prepare_drift(parameters, group, dict.fromkeys(parameters, 1.0))
        slopes = AdamDrift(optimizer).gradient_update_products(parameters, group)
    assert fetches.number == 0
    for i, (parameter, slope) in enumerate(zip(parameters, slopes, strict=True)):
        assert parameter.grad is not None
        own = optimizer.state[parameter]
        count = 3 - i // 2
        assert own["step"] == count
        update = (own["exp_avg"] / (1 - 0.9**count)) / ((own["exp_avg_sq"] / (1 - 0.999**count)).sqrt() + 1e-8)
        assert slope is not None
        torch.testing.assert_close(slope, -(parameter.grad * update).sum())
        torch.testing.assert_close(_moved(course, parameters, i), -0.1 * update - 0.1 * 0.01 * parameter.detach())


def _moved(course: Any, parameters: list[nn.Parameter], which: int) -> torch.Tensor:
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        course(0.1)
        moved = parameters[which] - before[which]
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return moved


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.999), (0.95, 0.95), (0.9, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drift_leaves_the_moments_of_any_gradient_as_they_are(betas: tuple[float, float], dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(200, 500, dtype=dtype))
    optimizer = torch.optim.Adam([parameter], lr=0.1, betas=betas)
    scale = 10.0 ** torch.linspace(-30, 15, 500)
    for step in range(60):
        # Some coordinates have no gradient any more, and keep a momentum that fades.
        gradient = torch.randn(200, 500) * scale * (torch.arange(200) > 3 * step)[:, None]
        parameter.grad = gradient.to(dtype)
        optimizer.step()
    state = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    with torch.no_grad():
        AdamDrift(optimizer).prepare_drift([parameter], optimizer.param_groups[0], {parameter: 1.0})(0.1)
        AdamDrift(optimizer).gradient_update_products([parameter], optimizer.param_groups[0])
    assert all(torch.equal(state[key], value) for key, value in optimizer.state[parameter].items())


@pytest.mark.parametrize("shape", SHAPES)
def test_slope_of_adam_is_the_inner_product_of_gradient_and_step(shape: str) -> None:
    parameter, optimizer = _stepped(torch.optim.Adam, SHAPES[shape]())
    with torch.no_grad():
        (slope,) = AdamDrift(optimizer).gradient_update_products([parameter], optimizer.param_groups[0])
        products = parameter.grad * _adam_update(parameter, optimizer)
        sampled = products[:, : SAMPLED // 3] if shape == "large" else products
        expected = -sampled.sum() * products.numel() / max(1, sampled.numel())
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-2)


def test_all_rows_of_an_embedding_are_looked_back_at() -> None:
    parameter, optimizer = _stepped(torch.optim.Adam, torch.randn(SAMPLED // 8, 32))
    used = torch.zeros_like(parameter)
    used[SAMPLED // 16] = 1.0
    parameter.grad *= used
    with torch.no_grad():
        (slope,) = AdamDrift(optimizer).gradient_update_products([parameter], optimizer.param_groups[0])
        expected = -(parameter.grad * _adam_update(parameter, optimizer))[:, :COLUMNS].sum() * 32 / COLUMNS
    assert slope != 0
    torch.testing.assert_close(slope, expected)


def test_weight_decay_of_a_parameter_that_does_not_drift() -> None:
    parameter, optimizer = _stepped(torch.optim.AdamW, torch.randn(7), weight_decay=0.5)
    expected = parameter.detach() * (1 - 0.2 * 0.5)
    with torch.no_grad():
        AdamDrift(optimizer).prepare_drift([parameter], optimizer.param_groups[0], {parameter: 0.0})(0.2)
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_with_maximise_drift_goes_on_where_the_step_went(kind: str, *, fused: bool) -> None:
    """And a gradient along which it goes up, as it should, is a slope below zero."""
    classes = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    words: dict[str, Any] = {"momentum": 0.9} if kind == "sgd" else {"weight_decay": 0.0}
    parameter = nn.Parameter(torch.randn(7))
    optimizer = classes[kind]([parameter], lr=0.1, maximize=True, fused=fused, **words)
    parameter.grad = torch.randn(7)
    before = parameter.detach().clone()
    optimizer.step()
    step = parameter.detach() - before
    rule, group = choose_rule(optimizer, optimizer.param_groups[0], DisplacementDrift()), optimizer.param_groups[0]
    with torch.no_grad():
        (slope,) = rule.gradient_update_products([parameter], group)
        start = parameter.clone()
        rule.prepare_drift([parameter], group, {parameter: 1.0})(0.1)
    assert (step * parameter.grad).sum() > 0
    assert slope is not None
    torch.testing.assert_close(0.1 * slope, -(step * parameter.grad).sum())
    torch.testing.assert_close(parameter.detach() - start, step)


def test_a_parameter_without_state_or_gradient_has_no_slope_and_stays() -> None:
    parameter, optimizer = _stepped(torch.optim.Adam, torch.randn(3))
    other = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [other]})
    rule, group = AdamDrift(optimizer), optimizer.param_groups[1]
    with torch.no_grad():
        rule.prepare_drift([other], group, {other: 1.0})(0.1)
        assert rule.gradient_update_products([other], group) == [None]
        parameter.grad = None
        assert rule.gradient_update_products([parameter], optimizer.param_groups[0]) == [None]
    assert torch.equal(other, torch.ones(2))


def test_sgd_drifts_along_its_momentum() -> None:
    parameter, optimizer = _stepped(torch.optim.SGD, torch.randn(5), momentum=0.9, nesterov=True)
    buffer = optimizer.state[parameter]["momentum_buffer"]
    expected = parameter - 0.1 * 3 * buffer
    rule = SGDDrift(optimizer)
    with torch.no_grad():
        (slope,) = rule.gradient_update_products([parameter], optimizer.param_groups[0])
        rule.prepare_drift([parameter], optimizer.param_groups[0], {parameter: 1.0})(0.3)
    torch.testing.assert_close(slope, -(parameter.grad * buffer).sum())
    torch.testing.assert_close(parameter, expected)


def test_displacement_follows_the_learning_rate() -> None:
    parameter, before = nn.Parameter(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 2.0])
    rule = DisplacementDrift()
    with torch.no_grad():
        rule.record_step([parameter], [before], {"lr": 0.2})
        rule.prepare_drift([parameter], {"lr": 0.1}, {parameter: 0.5})(0.1)
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.5, 0.75]))


def test_displacement_of_a_step_at_rate_zero_is_none() -> None:
    parameter = nn.Parameter(torch.ones(2))
    rule = DisplacementDrift()
    with torch.no_grad():
        rule.record_step([parameter], [torch.ones(2)], {"lr": 0.0})
        rule.prepare_drift([parameter], {"lr": 0.1}, {parameter: 1.0})(0.1)
    assert torch.equal(parameter, torch.ones(2))


def test_only_optimizers_of_torch_itself_have_rules_of_their_own() -> None:
    class MyAdamW(torch.optim.AdamW):
        pass

    parameter, displacement = nn.Parameter(torch.ones(1)), DisplacementDrift()
    expected = {torch.optim.AdamW: AdamDrift, torch.optim.Adagrad: DisplacementDrift, MyAdamW: DisplacementDrift}
    for kind, rule in expected.items():
        optimizer = kind([parameter], lr=0.1)
        assert type(choose_rule(optimizer, optimizer.param_groups[0], displacement)) is rule
    other = type("Other", (torch.optim.SGD,), {})([parameter], lr=0.1, momentum=0.9)
    assert choose_rule(other, other.param_groups[0], displacement) is displacement
    plain = torch.optim.SGD([parameter], lr=0.1)
    assert choose_rule(plain, plain.param_groups[0], displacement) is displacement


def test_many_parameters_at_once_are_each_by_itself() -> None:
    sizes = [3, SAMPLED, SAMPLED + 1, 7, 5, 6]
    kinds = [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16, torch.float32, torch.float32]
    parameters = [nn.Parameter(torch.randn(size, dtype=kind)) for size, kind in zip(sizes, kinds, strict=True)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, foreach=False)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    factors = {parameter: 0.5 ** (i % 3) for i, parameter in enumerate(parameters)}
    rule, group, start = AdamDrift(optimizer), optimizer.param_groups[0], [p.detach().clone() for p in parameters]
    with torch.no_grad():
        slopes = rule.gradient_update_products(parameters, group)
        rule.prepare_drift(parameters, group, factors)(0.1)
        together = [parameter.clone() for parameter in parameters]
        for parameter, before, end, slope in zip(parameters, start, together, slopes, strict=True):
            parameter.copy_(before)
            rule.prepare_drift([parameter], group, factors)(0.1)
            assert torch.equal(parameter, end)
            assert torch.equal(rule.gradient_update_products([parameter], group)[0], slope)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95)])
def test_counts_on_a_device_are_not_read_for_slopes(
    monkeypatch: pytest.MonkeyPatch, betas: tuple[float, float]
) -> None:
    sizes = [(3,), (7, 2 * SAMPLED // 7), (7, 2 * SAMPLED // 7), (4, 4), ()]
    parameters = [nn.Parameter(torch.randn(size)) for size in sizes]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=betas)
    for step in range(5):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.randn_like(parameter) if step % (i + 1) == 0 else None
        optimizer.step()
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    rule, group = AdamDrift(optimizer), optimizer.param_groups[0]
    with torch.no_grad():
        wanted = rule.gradient_update_products(parameters, group)
        monkeypatch.setattr(adam_drift, "is_on_host", lambda count: False)
        with Waits() as waits:
            found = rule.gradient_update_products(parameters, group)
    assert not waits.number
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_no_value_on_a_device_is_read_to_compute_slopes() -> None:
    """On the device "meta" there are no values: reading one is an error."""
    parameters = [nn.Parameter(torch.zeros(size, device="meta")) for size in ((3,), (5, SAMPLED))]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
        moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device="meta"), **moments}
    with torch.no_grad():
        slopes = AdamDrift(optimizer).gradient_update_products(parameters, optimizer.param_groups[0])
    assert [slope.device.type for slope in slopes if slope is not None] == ["meta", "meta"]


def test_a_drift_step_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for size, parts in ((1 << 26, 1), (8 * 100, 3)):
        monkeypatch.setattr(adam_drift, "TEMPORARY_BYTES", size)
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(length, dtype=torch.float64)) for length in (60, 40, 300, 5)]
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        rule, group = AdamDrift(optimizer), optimizer.param_groups[0]
        with torch.no_grad(), Roots() as roots:
            rule.prepare_drift(parameters, group, dict.fromkeys(parameters, 1.0))(0.1)
        assert roots.number == parts
        ends.append([parameter.detach() for parameter in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_epsilon_may_be_a_number_of_numpy() -> None:
    slopes = []
    for epsilon in (np.float32(2.0**-20), 2.0**-20):
        parameter = nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1, eps=epsilon)
        parameter.grad = torch.ones(3)
        optimizer.step()
        with torch.no_grad():
            slopes += AdamDrift(optimizer).gradient_update_products([parameter], optimizer.param_groups[0])
    assert slopes[0] == slopes[1]


class Roots(TorchDispatchMode):
    """How often roots are computed for a list of tensors."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function is torch.ops.aten._foreach_sqrt.default
        return function(*args, **(kwargs or {}))
