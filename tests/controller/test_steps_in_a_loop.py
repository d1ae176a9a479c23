"""Loops that go wrong: a step that is tried again, numbers that begin again, groups and wrappers that change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hf_multirate import AveragedCopies, CopiesConfig, Multirate, MultirateConfig, multirate_parameter_groups
from tests.support.small import batch, network


FAST = r"^5\."
CONTROLLERS: dict[str, Callable[[], Multirate | AveragedCopies]] = {
    "multirate": lambda: Multirate(MultirateConfig.two_rate(FAST, 4, turns="fixed")),
    "copies": lambda: AveragedCopies(CopiesConfig((1, 4), turns="fixed")),
}


def begin(controller: Multirate | AveragedCopies, model: nn.Module, step: int, *, whole: bool = True) -> None:
    """Begin a step and run backward."""
    controller.begin_step(step) if whole else controller.set_step(step)
    with controller.micro_batch():
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()


def train(controller: Multirate | AveragedCopies, model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        begin(controller, model, step)
        optimizer.step()
        optimizer.zero_grad()


class Failing(SGD):
    """Its next step raises an error if that is asked for; it calls that of its base class."""

    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            self.fails = False
            raise MemoryError
        return super().step(closure)


@pytest.mark.parametrize("kind", ["drift", "long_step", "copies"])
@pytest.mark.parametrize("again", ["the step of the optimizer", "the whole step"])
def test_a_step_that_is_tried_again_is_one_step(kind: str, again: str) -> None:
    ends = []
    for failing in (None, 4, 5):
        model = network()
        config = MultirateConfig.two_rate(FAST, 4, "long_step" if kind == "long_step" else "drift", turns="fixed")
        controller: Any = CONTROLLERS["copies"]() if kind == "copies" else Multirate(config)
        groups = model.parameters() if kind == "copies" else multirate_parameter_groups(model, config, lr=0.01)
        optimizer = Failing(groups, lr=0.01, momentum=0.9)
        with controller.attach(model, optimizer):
            for step in range(8):
                begin(controller, model, step)
                optimizer.fails = step == failing
                try:
                    optimizer.step()
                except MemoryError:
                    if again == "the whole step":
                        optimizer.zero_grad()
                        begin(controller, model, step)
                    optimizer.step()
                optimizer.zero_grad()
                assert [group["lr"] for group in optimizer.param_groups] == [0.01] * len(optimizer.param_groups)
            assert controller.applied_steps == 8
        ends.append([parameter.detach() for parameter in model.parameters()])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize("whole", [True, False], ids=["begin_step", "set_step"])
def test_numbers_that_begin_again_are_an_error(kind: str, whole: bool) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.01)
    with CONTROLLERS[kind]().attach(model, optimizer) as controller:
        begin(controller, model, 2, whole=whole)
        begin(controller, model, 2, whole=whole)  # another micro-batch
        optimizer.step()
        optimizer.zero_grad()
        for step in (2, 0):
            with pytest.raises(ValueError, match=rf"step {step} was begun after step 2 was taken.*over all epochs"):
                begin(controller, model, step, whole=whole)
        for wrong, error in ((-1, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="a step index"):
                begin(controller, model, wrong, whole=whole)  # type: ignore[arg-type]
        controller.load_state_dict(controller.state_dict())
        train(controller, model, optimizer, range(3))


def test_a_model_without_wrapper_is_refused_by_both_ways_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    with Multirate(MultirateConfig.two_rate(FAST, 4)).attach(model, SGD(model.parameters(), lr=0.01)) as multirate:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        for call in (multirate.begin_step, multirate.set_step):
            with pytest.raises(RuntimeError, match="there are 2 processes, but the attached model has no"):
                call(0)


@pytest.mark.parametrize("idle", ["freeze", "drift", "long_step"])
def test_parameters_that_join_later_train_at_every_step(idle: str) -> None:
    model = network()
    model[0].requires_grad_(False)
    config = MultirateConfig.two_rate(FAST, 2, idle, turns="fixed")
    optimizer = AdamW(multirate_parameter_groups(model, config, lr=0.01))
    with Multirate(config).attach(model, optimizer) as multirate:
        train(multirate, model, optimizer, range(3))
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        for step in range(3, 6):
            before = model[0].weight.detach().clone()
            train(multirate, model, optimizer, range(step, step + 1))
            assert not torch.equal(model[0].weight, before)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("idle", ["freeze", "drift"])
def test_sparse_gradients_of_a_large_table(idle: str, momentum: float) -> None:
    """Its loss decrease, from sampled columns, is that of dense gradients."""
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(5000, 64, sparse=sparse, mode="sum"), nn.Linear(64, 4))
        optimizer = SGD(model.parameters(), lr=0.1, momentum=momentum)
        config = MultirateConfig.two_rate(r"^1\.", period=2, idle=idle, turns="fixed")
        with Multirate(config).attach(model, optimizer) as multirate:
            for step in range(6):
                multirate.begin_step(step)
                model(torch.arange(12).view(4, 3) * (step % 3 + 1)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            blocks = {name: "all" for name, _ in model.named_parameters()}
            decreases = [value.decrease for value in multirate.loss_decrease.take(blocks).values()]
            found.append((decreases, model[0].weight.detach().clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][0] or (idle, momentum) == ("freeze", 0.0)  # then nothing keeps the last update
    torch.testing.assert_close(found[0][1], found[1][1])


def test_a_group_without_gradient_is_an_error_beside_one_that_rests() -> None:
    model = network()
    resting = MultirateConfig.ladder([1, 2, "never"], turns="fixed")
    config = MultirateConfig.stages([(0.9, resting), (1.0, MultirateConfig.ladder([1, 2, 4], turns="fixed"))])
    optimizer = SGD(model.parameters(), lr=0.01)
    with Multirate(config).attach(model, optimizer, total_steps=20) as multirate:
        (slow,) = [name for name, period in zip(multirate.partition, (1, 2), strict=False) if period == 2]
        lost = [model.get_parameter(name) for name in multirate.partition[slow]]

        def run() -> None:
            for step in range(18):
                begin(multirate, model, step)
                for parameter in lost:
                    parameter.grad = None
                optimizer.step()
                optimizer.zero_grad()

        with pytest.raises(RuntimeError, match="never got a gradient in 3 full steps"):
            run()
