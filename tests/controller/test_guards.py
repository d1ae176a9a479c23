"""Who saves or evaluates a model in the middle of a step, in a loop of one's own, sees its parameters as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from hf_multirate import AveragedCopies, CopiesConfig, Multirate, MultirateConfig
from hf_multirate.model.hooks import last_hooks
from tests.support.runs import assert_same
from tests.support.small import batch, network


Look = Callable[[nn.Module], Any]


def saved(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def evaluated(model: nn.Module) -> Tensor:
    model.eval()
    output: Tensor = model(batch(99)[0])
    model.train()
    return output


def controller(kind: str) -> Any:
    if kind == "copies":
        return AveragedCopies(CopiesConfig((1, 2), turns="fixed"))
    config = (
        MultirateConfig.random_subsets(3, turns="fixed")
        if kind == "zero"
        else MultirateConfig.two_rate("5", 3, turns="fixed", idle="drift")
    )
    return Multirate(config)


def backward(model: nn.Module, step: int) -> None:
    inputs, labels = batch(step)
    nn.functional.cross_entropy(model(inputs), labels).backward()


@pytest.mark.parametrize("kind", ["zero", "copies"])
@pytest.mark.parametrize("look", [saved, evaluated])
def test_a_look_in_the_middle_of_a_step(kind: str, look: Look) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with controller(kind).attach(model, optimizer) as control:
        for step in range(7):
            before = look(model)
            control.begin_step(step)
            backward(model, step)
            # Batch norm counts batches whoever looks.
            seen = look(model)
            if look is saved:
                parameters = dict(model.named_parameters())
                for name in parameters:
                    assert_same(seen[name], before[name], f"step {step}: {name}")
            else:
                assert torch.isfinite(seen).all()
            control.begin_step(step)
            optimizer.step()
            optimizer.zero_grad()


def test_a_step_that_a_scaler_skips_leaves_nothing_behind() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with controller("zero").attach(model, optimizer) as control:
        for step in range(2):
            control.begin_step(step)
            backward(model, step)
            if step == 0:
                optimizer.step()
            optimizer.zero_grad()
        assert not any((value == 0).all() or (value == 0).float().mean() > 0.2 for value in _matrices(saved(model)))


def _matrices(values: dict[str, Tensor]) -> list[Tensor]:
    return [value for value in values.values() if value.dim() > 1]


@pytest.mark.parametrize("look", [saved, evaluated])
def test_a_look_changes_nothing_of_the_run(look: Look) -> None:
    ends = []
    for looks in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        with controller("drift").attach(model, optimizer) as control:
            for step in range(7):
                for _ in range(2):
                    control.begin_step(step)
                    assert model[0].weight.requires_grad is (step % 3 == 0)
                    backward(model, step)
                    if looks:
                        look(model)
                        assert model[0].weight.requires_grad
                control.synchronize()
                assert model[0].weight.requires_grad
                optimizer.step()
                optimizer.zero_grad()
        ends.append(saved(model))
    assert_same(*ends)


def test_a_look_between_the_beginning_and_the_forward_pass_is_told_of() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with controller("drift").attach(model, optimizer) as control:
        for step in range(2):
            control.begin_step(step)
            saved(model)
            backward(model, step)
            if step == 0:
                optimizer.step()
            else:
                with pytest.raises(
                    RuntimeError, match=r"idle at step 1.*saved or evaluated.*begin_step\(step\) again"
                ):
                    optimizer.step()
            optimizer.zero_grad()


def test_hooks_do_not_come_back_when_a_hook_before_them_ends_them() -> None:
    model = network()
    with ExitStack() as stack:
        model.register_forward_pre_hook(lambda *_: stack.close())
        stack.enter_context(last_hooks(model, [(model[0], lambda *_: None)]))
        assert model[0]._forward_hooks
        model(batch(0)[0])
        assert not model[0]._forward_hooks


def test_copies_go_on_with_their_own_after_a_look() -> None:
    ends = []
    for looks in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), lr=0.1)
        with controller("copies").attach(model, optimizer) as control:
            for step in range(7):
                control.begin_step(step)
                for micro in range(2):
                    backward(model, 2 * step + micro)
                    if looks:
                        saved(model)
                optimizer.step()
                optimizer.zero_grad()
        ends.append(saved(model))
    assert_same(*ends)


def test_a_look_within_a_micro_batch_sees_the_copy_of_that() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    with controller("copies").attach(model, optimizer) as control:
        for step in range(3):
            control.set_step(step)
            with control.micro_batch():
                before = model[0].weight.clone()
                evaluated(model)
                assert_same(model[0].weight, before)
                backward(model, step)
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                fast = model[0].weight.clone()
        assert not torch.equal(before, fast)  # the third step is the other copy's


def test_hooks_are_gone_in_the_end() -> None:
    model = network()
    for kind in ("zero", "copies"):
        with controller(kind).attach(model, SGD(model.parameters(), lr=0.1)):
            assert model._forward_pre_hooks
            assert model._state_dict_pre_hooks
        assert not model._forward_pre_hooks
        assert not model._state_dict_pre_hooks
