"""The controller in loops of one's own: bare PyTorch, Accelerate, and the ways to use it wrongly."""

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups


CONFIG = MultirateConfig.two_rate("2\\.", period=3, turns="fixed", idle="drift")


def _model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def _batches(count: int) -> Iterator[torch.Tensor]:
    torch.manual_seed(4)
    for _ in range(count):
        yield torch.randn(5, 4)


def _train(multirate: Multirate, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[bool]:
    """Whether the bottom had a gradient, step by step."""
    seen = []
    batches = list(_batches(20))
    for step in steps:
        multirate.begin_step(step)
        model(batches[step]).square().mean().backward()
        seen.append(model[0].weight.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    return seen


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_bare_loop_gives_the_bottom_a_gradient_every_third_step_and_lets_go() -> None:
    model = _model()
    optimizer = _adamw(model)
    with Multirate(CONFIG).attach(model, optimizer) as multirate:
        assert _train(multirate, model, optimizer, range(7)) == [True, False, False] * 2 + [True]
        assert multirate.applied_steps == 7
    assert all(p.requires_grad for p in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_accelerate_loop_is_the_bare_loop() -> None:
    from accelerate import Accelerator

    weights = []
    for wrap in (False, True):
        model = _model()
        optimizer = _adamw(model)
        used = Accelerator(cpu=True).prepare_optimizer(optimizer) if wrap else optimizer
        with Multirate(CONFIG).attach(model, used) as multirate:
            _train(multirate, model, used, range(7))
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_begin_step_may_be_repeated_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    optimizer = _adamw(model)
    with Multirate(CONFIG).attach(model, optimizer) as multirate:
        _train(multirate, model, optimizer, range(1))
        started: list[int] = []
        monkeypatch.setattr(multirate.timing, "start", lambda: started.append(1))
        for _ in range(2):
            multirate.begin_step(1)
            model(torch.ones(1, 4)).sum().backward()
            assert model[0].weight.grad is None
        optimizer.step()
        assert multirate.applied_steps == 2
        assert len(started) == 1


def test_flags_are_back_after_an_error_within_a_step() -> None:
    model = _model()
    optimizer = _adamw(model)
    model[0].bias.requires_grad_(False)
    multirate = Multirate(CONFIG).attach(model, optimizer)
    multirate.begin_step(1)
    assert not model[0].weight.requires_grad
    multirate.__exit__(KeyError, KeyError(), None)
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]


def test_a_step_that_was_not_begun_is_refused_every_time() -> None:
    model = _model()
    optimizer = _adamw(model)
    with Multirate(CONFIG).attach(model, optimizer) as multirate:
        optimizer.step()  # without a gradient there is nothing to do
        model(next(_batches(1))).sum().backward()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="without begin_step"):
                optimizer.step()
        optimizer.zero_grad()
        _train(multirate, model, optimizer, range(1))
        model(next(_batches(1))).sum().backward()
        with pytest.raises(RuntimeError, match="without begin_step"):
            optimizer.step()
    optimizer.step()


def test_one_optimizer_has_one_controller() -> None:
    model = _model()
    optimizer = _adamw(model)
    with Multirate(CONFIG).attach(model, optimizer) as multirate:
        for other in (multirate, Multirate(CONFIG)):
            with pytest.raises(RuntimeError, match="attached already"):
                other.attach(model, optimizer)
    multirate.attach(model, optimizer).detach()


@pytest.mark.parametrize("use", ["begin_step", "state_dict", "load_state_dict", "partition"])
def test_what_needs_a_model_says_so(use: str) -> None:
    multirate = Multirate(CONFIG)
    calls = {
        "begin_step": lambda: multirate.begin_step(0),
        "state_dict": multirate.state_dict,
        "load_state_dict": lambda: multirate.load_state_dict({}),
        "partition": lambda: multirate.partition,
    }
    with pytest.raises(RuntimeError, match="attach"):
        calls[use]()


def test_negative_step_and_no_optimizer_are_refused() -> None:
    model = _model()
    with pytest.raises(TypeError, match="optimizer"):
        Multirate(CONFIG).attach(model, model)
    with Multirate(CONFIG).attach(model, _adamw(model)) as multirate, pytest.raises(ValueError, match="-1"):
        multirate.begin_step(-1)


def test_an_optimizer_that_lacks_a_parameter_is_refused_by_name() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"0\.weight"):
        Multirate(CONFIG).attach(model, torch.optim.SGD(model[2].parameters(), lr=0.1))


def test_state_dict_continues_in_the_middle_of_a_cycle() -> None:
    def adagrad(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(model.parameters(), lr=0.01)

    whole, first = _model(), _model()
    optimizer = adagrad(whole)
    with Multirate(CONFIG).attach(whole, optimizer) as multirate:
        _train(multirate, whole, optimizer, range(9))
    optimizer = adagrad(first)
    with Multirate(CONFIG).attach(first, optimizer) as multirate:
        _train(multirate, first, optimizer, range(5))
        state = multirate.state_dict()
    second = _model()
    second.load_state_dict(first.state_dict())
    resumed = adagrad(second)
    resumed.load_state_dict(optimizer.state_dict())
    with Multirate(CONFIG).attach(second, resumed) as multirate:
        multirate.load_state_dict(state)
        _train(multirate, second, resumed, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_state_of_another_model_is_refused() -> None:
    model = _model()
    with Multirate(CONFIG).attach(model, _adamw(model)) as multirate, pytest.raises(ValueError, match="decoder"):
        multirate.load_state_dict({"displacement": {}, "level": {"decoder.weight": 1}})


@pytest.mark.parametrize(("patterns", "words"), [("nowhere", "nowhere"), (".*", "slow")])
def test_a_group_without_parameters_is_refused(patterns: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Multirate(MultirateConfig.two_rate(patterns, turns="fixed", idle="drift")).assign(_model())


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="trainable"):
        Multirate(CONFIG).assign(_model().requires_grad_(False))


def test_a_closure_is_refused_where_slow_groups_take_long_steps() -> None:
    model = _model()
    config = MultirateConfig.two_rate("^2", 2, "long_step", turns="fixed")
    optimizer = torch.optim.SGD(multirate_parameter_groups(model, config, lr=0.1))
    with Multirate(config).attach(model, optimizer) as multirate:
        multirate.begin_step(0)
        with pytest.raises(ValueError, match="closure"):
            optimizer.step(lambda: 0.0)


def test_subsets_of_short_floats_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.random_subsets(3, turns="fixed")
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        Multirate(config).assign(_model())
        assert caplog.text == ""
        Multirate(config).assign(_model().to(torch.bfloat16))
    assert "lost before they are scaled" in caplog.text


def test_drift_follows_a_state_that_is_loaded_in_the_middle_of_a_cycle() -> None:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Multirate(CONFIG).attach(model, optimizer) as multirate:
        _train(multirate, model, optimizer, range(2))
        state = copy.deepcopy(optimizer.state_dict())
        for entry in state["state"].values():
            entry["momentum_buffer"].mul_(-3)
        optimizer.load_state_dict(state)
        before = model[0].weight.detach().clone()
        momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
        _train(multirate, model, optimizer, range(2, 3))
        torch.testing.assert_close(model[0].weight.detach(), before - 0.1 * momentum)


def test_drift_of_short_floats_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        Multirate(MultirateConfig.two_rate("^2", 2)).assign(_model().to(torch.bfloat16))
        Multirate(CONFIG).assign(_model())
        assert caplog.text == ""
        Multirate(CONFIG).assign(_model().to(torch.bfloat16))
    assert "Drift steps below the precision of a weight are lost" in caplog.text
