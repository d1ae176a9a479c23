"""Stages in custom training loops, in descriptions and in plans."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, RMSprop

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups, plan
from tests.support.runs import assert_same, example
from tests.support.small import batch, network


DRIFT = MultirateConfig.two_rate("^5", 3, "drift", drift_factor=1.0, turns="fixed")
TOP = MultirateConfig.two_rate("^5", "never")
TWICE = MultirateConfig.stages([(0.5, DRIFT), (1.0, DRIFT)])
STAGES = MultirateConfig.stages([(0.5, TOP), (1.0, DRIFT)])
STEPS = 8


def step_of(multirate: Multirate, model: nn.Module, optimizer: Any, step: int, first: int = 0) -> None:
    inputs, labels = batch(step)
    multirate.begin_step(step - first)
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_same_stage_twice_is_a_schedule_that_restarts() -> None:
    model, other = network(), network()
    optimizers = [AdamW(m.parameters(), lr=1e-2) for m in (model, other)]
    with Multirate(TWICE).attach(model, optimizers[0], total_steps=STEPS) as multirate:
        for step in range(STEPS):
            step_of(multirate, model, optimizers[0], step)
            assert multirate.step == step
            assert multirate.stage == 1 + (step >= STEPS // 2)
            assert multirate.applied_steps == step + 1
        assert multirate.timing.counted(full=True) + multirate.timing.counted(full=False) == STEPS
    for first in (0, STEPS // 2):
        with Multirate(DRIFT).attach(other, optimizers[1]) as multirate:
            for step in range(first, first + STEPS // 2):
                step_of(multirate, other, optimizers[1], step, first)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(optimizers[0].state_dict(), optimizers[1].state_dict())


@pytest.mark.parametrize("kind", [SGD, RMSprop])  # drift of RMSprop has state of its own
@pytest.mark.parametrize("saved", range(1, STEPS))
@pytest.mark.parametrize("config", [TWICE, STAGES], ids=["twice", "unfreezing"])
def test_state_of_any_step_continues_the_run(config: MultirateConfig, saved: int, kind: Any) -> None:
    whole: Any = None
    for resumed in (False, True):
        model = network()
        optimizer = kind(multirate_parameter_groups(model, config, lr=0.01), momentum=0.9)
        multirate = Multirate(config).attach(model, optimizer, total_steps=STEPS)
        for step in range(STEPS):
            if step == saved and resumed:
                state, inner = multirate.state_dict(), optimizer.state_dict()
                multirate.detach()
                multirate = Multirate(config).attach(model, optimizer, total_steps=STEPS)
                optimizer.load_state_dict(inner)
                multirate.load_state_dict(state)
                assert_same(multirate.state_dict(), state)
            step_of(multirate, model, optimizer, step)
        multirate.detach()
        if resumed:
            assert_same(dict(model.state_dict()), whole)
        whole = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_a_copy_is_detached_and_keeps_its_stage(way: Any) -> None:
    model = network()
    optimizer = SGD(multirate_parameter_groups(model, STAGES, lr=0.1))
    with Multirate(STAGES).attach(model, optimizer, total_steps=STEPS) as multirate:
        step_of(multirate, model, optimizer, 0)
        copied = way(multirate)
        step_of(multirate, model, optimizer, STEPS - 1)
        assert multirate.attached
        assert multirate.stage == 2
        assert not copied.attached
        assert copied.stage == 1
        assert copied.groups == multirate.stages[0].config.groups


def test_a_damaged_state_is_refused_at_once() -> None:
    model = network()
    multirate = Multirate(STAGES).attach(model, SGD(model.parameters(), lr=0.1), total_steps=STEPS)
    with multirate, pytest.raises(ValueError, match="the state"):
        multirate.load_state_dict({"displacement": {}})


def test_the_number_of_steps_is_needed() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"total_steps is None: call attach\(model, optimizer, total_steps=...\)"):
        Multirate(STAGES).attach(model, optimizer)
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        Multirate(STAGES).attach(model, optimizer, 0)
    multirate = Multirate(STAGES)
    multirate.attach(model, optimizer, STEPS).detach()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_error_of_a_later_stage_is_raised_at_once() -> None:
    model = network()
    config = MultirateConfig.stages([(0.5, MultirateConfig.off()), (1.0, DRIFT)])

    class Swapping(SGD):
        def train(self) -> None: ...

        def eval(self) -> None: ...

    multirate = Multirate(config)
    with pytest.raises(ValueError, match="Swapping"):
        multirate.attach(model, Swapping(model.parameters(), lr=0.1), STEPS)
    assert not multirate.attached
    Multirate(MultirateConfig.off()).attach(model, SGD(model.parameters(), lr=0.1)).detach()


def test_groups_of_the_present_stage() -> None:
    model = network()
    with Multirate(STAGES).attach(model, SGD(model.parameters(), lr=0.1), total_steps=STEPS) as multirate:
        multirate.begin_step(0)
        assert [group.period for group in multirate.groups] == [1, "never"]
        assert not multirate.is_full_step
        assert not model[0].weight.requires_grad
        multirate.begin_step(STEPS // 2)
        assert [group.period for group in multirate.groups] == [1, 3]
        assert multirate.is_full_step
        assert model[0].weight.requires_grad


def test_description_and_plan_show_the_stages() -> None:
    model, rows = example("bert", 4)
    data = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    top, all_groups = MultirateConfig.two_rate("last:2", "never"), MultirateConfig.off()
    config = MultirateConfig.stages([(0.25, top), (1.0, all_groups)])
    multirate = Multirate(config).assign(model)
    text = multirate.describe()
    assert "stage 1 of 2, from 0% to 25% of training" in text
    assert "stage 2 of 2, from 25% to 100% of training" in text
    with multirate.attach(model, SGD(model.parameters(), lr=0.1), 100):
        first, second = multirate.stage_speedups
        assert second == 1.0
        whole = 1 / (0.25 / first + 0.75)
        assert multirate.timing.speedup_predicted == pytest.approx(whole)
    assert text.endswith(f"predicted speed-up of the run: {whole:.2f}x")
    staged, alone = plan(model, data, {"stages": config, "top": top}, measure=True)
    assert [stage.share for stage in staged.stages] == [0.25, 0.75]
    assert staged.stages[0].plan.speedup == alone.speedup
    assert [(group.name, group.period) for group in staged.stages[0].plan.groups] == [("fast", 1), ("slow", "never")]
    assert staged.speedup == pytest.approx(1 / (0.25 / alone.speedup + 0.75))
    assert staged.blockers == ("stage 2: every step is a full step",)
    assert staged.speedup_measured is not None
    assert len(staged.to_dict()["stages"]) == 2
