"""Inactive modules in a lower precision: what runs, what its rounding is, and that nothing is left changed."""

from __future__ import annotations

import copy
import gc
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups
from hf_multirate.backward.low_precision import LowPrecisionForward
from tests.support.runs import PERIOD, example, trainer_for, weights
from tests.support.small import batch, network


class Body(nn.Module):
    """The small network in two parts, so that what is idle is one module with a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        parts = list(network())
        self.body, self.head = nn.Sequential(*parts[:5]), parts[5]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.body(inputs))


def config(idle: str = "drift", **settings: Any) -> MultirateConfig:
    return MultirateConfig.two_rate("^head", PERIOD, idle, inactive_forward="train", **settings, turns="fixed")


def trained(settings: MultirateConfig, steps: int = 7) -> tuple[Body, list[torch.dtype], list[Tensor]]:
    """The network after ``steps``, dtypes of the weight that its first layer used at each, and all losses."""
    model, seen, losses = Body(), [], []
    optimizer = torch.optim.SGD(multirate_parameter_groups(model, settings, lr=0.1), momentum=0.9)
    model.body[0].register_forward_hook(lambda module, args, output: seen.append(module.weight.dtype))
    with Multirate(settings).attach(model, optimizer) as multirate:
        for step in range(steps):
            multirate.begin_step(step)
            inputs, labels = batch(step)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad()
    return model, seen, losses


def test_only_fast_only_steps_run_in_low_precision() -> None:
    model, seen, losses = trained(config(inactive_dtype="bfloat16"))
    assert seen == [torch.float32 if step % PERIOD == 0 else torch.bfloat16 for step in range(7)]
    assert {value.dtype for value in [*losses, *model.parameters()]} == {torch.float32}
    assert model.body[0].weight.requires_grad


@pytest.mark.parametrize(
    ("instructions", "dtype", "device", "warned"),
    [
        ("AVX2", "bfloat16", "cpu", 1),
        ("AVX2", None, "cpu", 0),
        ("AVX512", "bfloat16", "cpu", 0),
        ("AVX2", "float16", "meta", 0),
    ],
)
def test_a_precision_that_the_processor_emulates_is_named(
    instructions: str, dtype: str | None, device: str, warned: int, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    Multirate(config(inactive_dtype=dtype)).assign(Body().to(device))
    assert caplog.text.count("can take 30 times as long as in float32. Remove inactive_dtype.") == warned


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_changes_losses_by_its_rounding_only(dtype: str) -> None:
    exact, _, losses = trained(config())
    rounded, _, others = trained(config(inactive_dtype=dtype))
    gaps = [abs(one - other).item() for one, other in zip(losses, others, strict=True)]
    assert gaps[0] == 0
    assert 0 < max(gaps[1:]) < 1e-2
    for one, other in zip(exact.parameters(), rounded.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=0)


def test_a_low_precision_pass_is_that_of_the_weights_as_they_are_now() -> None:
    layer, low = nn.Linear(6, 6), LowPrecisionForward(torch.bfloat16)
    inputs = torch.randn(4, 6)
    writes = (
        lambda: None, lambda: layer.weight.mul_(2), lambda: None, lambda: layer.weight.copy_(torch.eye(6)),
        lambda: setattr(layer.weight, "data", torch.ones(6, 6)),
    )  # fmt: skip
    for write in writes:
        with torch.no_grad():
            write()
            with torch.autocast("cpu", torch.bfloat16):
                expected = layer(inputs).float()
            with low.casting([layer]):
                assert torch.equal(layer(inputs), expected)


GROUPS = {
    "drift": MultirateConfig.two_rate("last:1", PERIOD, inactive_dtype="bfloat16", turns="fixed", idle="drift"),
    "ladder": MultirateConfig.ladder([1, 2, 4], idle="freeze", inactive_dtype="bfloat16", turns="fixed"),
    "auto": MultirateConfig.auto(1.6, inactive_dtype="bfloat16", turns="fixed"),
}


@pytest.mark.parametrize("fused", [False, True])  # a fused step leaves no mark on what it moves
@pytest.mark.parametrize("groups", GROUPS)
def test_idle_weights_are_those_of_the_step(groups: str, fused: bool) -> None:
    model, rows = example("bert")
    parameters, stale, idle = dict(model.named_parameters()), [], set()

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            used = module._parameters["weight"]
            if used.dtype == torch.bfloat16:
                idle.add(name)
                stale.append(not torch.equal(used, parameters[f"{name}.weight"].bfloat16()))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(look(name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    batch = {key: torch.stack([row[key] for row in rows[:4]]) for key in rows[0]}
    with Multirate(GROUPS[groups]).attach(model, optimizer) as multirate:
        for step in range(20):
            multirate.begin_step(step)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(idle) >= 12
    assert not any(stale)


def test_nothing_is_kept_of_a_model_that_is_let_go() -> None:
    model = Body()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    multirate = Multirate(config(inactive_dtype="bfloat16")).attach(model, optimizer)
    multirate.set_step(1)
    with multirate.micro_batch():
        model(torch.zeros(2, 6))
    copies = [value for value in gc.get_objects() if _is_copy(value)]
    assert len(copies) == 2
    del copies
    multirate.detach()
    assert not [value for value in gc.get_objects() if _is_copy(value)]


def _is_copy(value: Any) -> bool:
    return type(value) is nn.Parameter and value.dtype == torch.bfloat16


def test_weights_of_another_precision_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model = Body().to(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(config(inactive_dtype="float16")).attach(model, optimizer) as multirate:
        multirate.set_step(1)
        with multirate.micro_batch(), caplog.at_level(logging.WARNING, "hf_multirate"):
            assert model(torch.zeros(2, 6, dtype=torch.float64)).dtype == torch.float64
    assert "weights in {torch.float64} keep their dtype" in caplog.text


def test_hooks_of_others_see_float32_and_copies_of_a_module_are_left_alone() -> None:
    model, seen = Body(), []
    model.body.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, _ = batch(0)
    wanted = model.body(inputs)
    with Multirate(config(inactive_dtype="bfloat16")).attach(model, optimizer) as multirate:
        multirate.set_step(1)
        with multirate.micro_batch():
            assert not torch.equal(model.body(inputs), wanted)
            assert torch.equal(copy.deepcopy(model).body(inputs), wanted)
    assert set(seen) == {torch.float32}


def test_an_error_that_a_model_catches_leaves_its_other_modules_in_float32() -> None:
    model = Body()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(config(inactive_dtype="bfloat16")).attach(model, optimizer) as multirate:
        multirate.set_step(1)
        with multirate.micro_batch():
            with pytest.raises(RuntimeError):
                model.body(torch.zeros(2, 7))
            assert model.head(torch.zeros(2, model.head.in_features)).dtype == torch.float32
            assert model.body[0].weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_are_not_rounded_on_their_way_through_what_is_idle(dtype: str) -> None:
    gradients = []
    for settings in ({}, {"inactive_dtype": dtype}):
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
        model.load_state_dict({name: torch.full_like(value, 0.1) for name, value in model.state_dict().items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Multirate(MultirateConfig.two_rate("^0", PERIOD, "drift", **settings, turns="fixed")).attach(
            model, optimizer
        ) as multirate:
            multirate.set_step(1)
            with multirate.micro_batch():
                (1e-9 * model(torch.linspace(0, 1, 12).view(2, 6)).square().sum()).backward()
            gradients.append(model[0].weight.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_a_module_that_two_others_share_is_one() -> None:
    encoder = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.ModuleList([encoder]), nn.ModuleList([encoder]), nn.Linear(12, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(torch.cat([self.one[0](inputs), self.other[0](-inputs)], -1))

    model = Towers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Multirate(config(inactive_dtype="bfloat16")).attach(model, optimizer) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "forward" not in vars(encoder)


@pytest.mark.parametrize(("idle", "passes"), [("long_step", 2), ("drift", 2 * (PERIOD - 1))])
def test_weights_are_cast_once_a_refresh_when_they_hold_and_together_when_they_drift(
    idle: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [], torch._foreach_copy_

    def counted(to: list[Tensor], of: list[Tensor]) -> None:
        calls.append(len(to))
        original(to, of)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    trained(config(idle, inactive_dtype="bfloat16"), steps=2 * PERIOD)
    assert calls == [2] * passes


def test_an_error_in_an_inactive_module_leaves_everything_as_it_was() -> None:
    model = Body()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = dict(model.named_parameters())
    settings = config(inactive_dtype="bfloat16")
    with Multirate(settings).attach(model, optimizer) as multirate:
        multirate.set_step(1)
        with pytest.raises(RuntimeError, match="2x7"), multirate.micro_batch():
            model(torch.zeros(2, 7))
        assert not torch.is_autocast_enabled("cpu")
        assert "forward" not in vars(model.body)
        assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", ["bert", "gpt2-lm", "resnet"])
def test_trainer_runs_idle_modules_in_low_precision(tmp_path: Path, family: str) -> None:
    runs = []
    for dtype in (None, "bfloat16"):
        settings = MultirateConfig.two_rate(
            "head" if family == "resnet" else "last:1", PERIOD, inactive_dtype=dtype, turns="fixed", idle="drift"
        )
        trainer = trainer_for(tmp_path, settings, family, learning_rate=1e-3)
        trainer.train()
        runs.append(weights(trainer))
    gaps = [(runs[0][name] - runs[1][name]).abs().max().item() for name in runs[0]]
    assert 0 < max(gaps) < (0.1 if family == "resnet" else 1e-2)  # running variances are large


def test_a_model_that_is_compiled_as_a_whole_is_refused() -> None:
    model, _ = example("bert")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="torch_compile"):
        Multirate(MultirateConfig.two_rate(inactive_dtype="bfloat16", idle="drift", turns="fixed")).attach(
            torch.compile(model), optimizer
        )
