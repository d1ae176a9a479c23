"""Random subgroups: what the reference writes down, what nobody may ever see, and draws that are pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, RandomSubset, RateGroup
from hf_multirate.optim.random_subsets import draw
from tests.support.reference import random_subsets
from tests.support.runs import assert_same, differ, phases, trainer_for, weights
from tests.support.small import batch, gradient_of, network, values


STEPS, RATE = 23, 0.05
PERIOD = 4


def loop(
    model: nn.Module, optimizer: Optimizer, config: MultirateConfig, steps: int = STEPS, accumulate: int = 1
) -> Iterator[int]:
    schedule = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(steps):
            multirate.begin_step(step)
            inputs, labels = batch(step)
            for i in range(accumulate):
                part = slice(i, None, accumulate)
                outputs = model(inputs[part].to(model[0].weight.dtype))
                nn.functional.cross_entropy(outputs, labels[part]).div(accumulate).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            yield step


def is_held(name: str, subset: RandomSubset, patterns: str) -> bool:
    chosen = patterns == ".*" or name.startswith(patterns.removeprefix("^"))
    return chosen and (subset.biases or (name.endswith("weight") and not name.startswith("2")))


SUBSETS = {
    "element": RandomSubset(),
    "sparse": RandomSubset(0.1, seed=3),
    "neuron": RandomSubset(unit="neuron"),
    "neuron with biases": RandomSubset(0.3, unit="neuron", biases=True),
    "biases rescaled": RandomSubset(biases=True, rescale=True),
    "every step": RandomSubset(redraw="step"),
    "every neuron rescaled": RandomSubset(0.4, unit="neuron", rescale=True, redraw="step"),
}


@pytest.mark.parametrize(("momentum", "patterns"), [(0.0, ".*"), (0.9, ".*"), (0.9, "^0")])
@pytest.mark.parametrize("name", SUBSETS)
def test_equals_the_plain_tensors(name: str, momentum: float, patterns: str) -> None:
    subset = SUBSETS[name]
    every = subset.redraw == "step"
    model = network().double()
    optimizer = SGD(model.parameters(), lr=RATE, momentum=momentum, weight_decay=0.01)

    def mask(c: int, i: str) -> Tensor:
        value = model.get_parameter(i)
        return draw(subset, c, i, value) if is_held(i, subset, patterns) else torch.zeros_like(value).bool()

    wanted = random_subsets(
        values(model), gradient_of(deepcopy(model)), mask, k=PERIOD, h=lambda n: RATE * (1 - n / STEPS), mu=momentum,
        steps=STEPS, weight_decay=0.01, scale=subset.scale, every_step=every,
    )  # fmt: skip
    # BatchNorm's scale and shift are vectors too.
    config = MultirateConfig.random_subsets(1 if every else PERIOD, subset, patterns, turns="fixed")
    for _ in loop(model, optimizer, config):
        pass
    got = values(model)
    assert max(float((got[i] - wanted[i]).abs().max()) for i in wanted) < 1e-10


@pytest.mark.parametrize("change", [{"k": 5}, {"scale": 2.0}, {"every_step": True}])
def test_settings_of_the_reference_matter(change: dict[str, Any]) -> None:
    model = network().double()
    results = []
    for settings in ({}, change):
        args: dict[str, Any] = {"k": PERIOD, "h": lambda n: RATE, "mu": 0.5, "steps": STEPS, **settings}
        mask = lambda c, i: draw(RandomSubset(), c, i, model.get_parameter(i))  # noqa: E731
        results.append(random_subsets(values(model), gradient_of(deepcopy(model)), mask, **args))
    assert max(float((results[0][i] - results[1][i]).abs().max()) for i in results[0]) > 1e-3


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_what_is_held_stays_and_so_does_its_state(kind: type[Optimizer]) -> None:
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, **({"momentum": 0.9} if kind is SGD else {}))
    subset = RandomSubset(0.5)
    seen = []
    last: dict[str, tuple[Tensor, ...]] = {}
    for step in loop(model, optimizer, MultirateConfig.random_subsets(PERIOD, subset, turns="fixed")):
        state = {name: [p, *optimizer.state[p].values()] for name, p in model.named_parameters()}
        now = {
            name: tuple(t.detach().clone() for t in tensors if torch.is_tensor(t) and t.shape == tensors[0].shape)
            for name, tensors in state.items()
        }
        if step % PERIOD:
            mask = draw(subset, step // PERIOD, "0.weight", model[0].weight)
            for before, after in zip(last["0.weight"], now["0.weight"], strict=True):
                seen.append(len(now["0.weight"]))
                assert torch.equal(before[mask], after[mask])
                assert (before[~mask] != after[~mask]).all()
        last = now
    assert set(seen) == ({2} if kind is SGD else {3})


@pytest.mark.parametrize("unit", ["element", "neuron"])
def test_forward_sees_zeros_and_nobody_else_does(unit: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    subset = RandomSubset(0.5, unit=unit, rescale=True)
    inside: list[Tensor] = []
    model[0].register_forward_pre_hook(lambda module, args: inside.append(module.weight.detach().clone()))
    clipped: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda *_: clipped.append(model[0].weight.grad.clone()))
    before = model[0].weight.detach().clone()
    for step in loop(model, optimizer, MultirateConfig.random_subsets(PERIOD, subset, turns="fixed"), accumulate=2):
        first, second = inside[-2:]
        assert torch.equal(first, second)
        mask = draw(subset, step // PERIOD, "0.weight", before)
        wanted = before if step % PERIOD == 0 else torch.where(mask, torch.zeros(()), 2 * before)
        assert torch.equal(first, wanted)
        if step % PERIOD:
            assert not clipped[-1][mask].any()
        before = model[0].weight.detach().clone()
        assert (before != 0).all()
    assert not model[0].weight._backward_hooks


def test_error_in_forward_leaves_the_stored_values() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    multirate = Multirate(MultirateConfig.random_subsets(PERIOD, turns="fixed")).attach(model, optimizer)
    multirate.begin_step(0)
    model(batch(0)[0]).sum().backward()
    optimizer.step()
    wanted = values(model)

    def fail(*_: object) -> None:
        raise RuntimeError("in forward")

    multirate.set_step(1)
    model[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in forward"), multirate.micro_batch():
        model(batch(1)[0])
    assert_same(values(model), wanted)
    multirate.begin_step(2)
    assert differ(values(model), wanted)
    multirate.detach()
    assert_same(values(model), wanted)


def test_draws_are_functions_of_seed_index_and_name() -> None:
    weight = torch.zeros(50, 40)
    subset = RandomSubset(0.3)
    one = draw(subset, 0, "a.weight", weight)
    torch.manual_seed(99)
    assert torch.equal(one, draw(subset, 0, "a.weight", weight))
    others = [draw(subset, 1, "a.weight", weight), draw(subset, 0, "b.weight", weight)]
    others.append(draw(RandomSubset(0.3, seed=1), 0, "a.weight", weight))
    for other in others:
        assert 0.2 < float((one & other).sum() / one.sum()) < 0.4  # independent of each other
    assert abs(float(one.float().mean()) - 0.3) < 0.05


def test_drawing_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    draw(RandomSubset(), 0, "a", torch.zeros(3, 3))
    draw(RandomSubset(unit="neuron"), 0, "a", torch.zeros(3, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("fraction", "rows", "count"), [(0.3, 10, 3), (0.3, 2, 1), (0.3, 1, 0), (0.1, 3, 1), (0.9, 3, 2)]
)
def test_neurons_are_whole_rows_and_never_all(fraction: float, rows: int, count: int) -> None:
    subset = RandomSubset(fraction, unit="neuron", biases=True)
    weight = draw(subset, 4, "layer.weight", torch.zeros(rows, 5, 2))
    assert torch.equal(weight, weight[:, :1, :1].expand_as(weight))
    assert int(weight[:, 0, 0].sum()) == count
    assert torch.equal(draw(subset, 4, "layer.bias", torch.zeros(rows)), weight[:, 0, 0])


CONFIG = MultirateConfig.random_subsets(3, RandomSubset(0.5, biases=True), turns="fixed")


def test_trainer_evaluates_and_saves_the_stored_values(tmp_path: Path) -> None:
    inside: list[bool] = []

    class Watching(MultirateTrainer):
        def compute_loss(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            inside.append(bool((model.classifier.weight == 0).any()))
            return super().compute_loss(model, *args, **kwargs)

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            assert not any((p == 0).any() for name, p in self.model.named_parameters() if "attention" in name)
            return super().evaluate(*args, **kwargs)

    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    trainer = trainer_for(tmp_path, CONFIG, kind=Watching, **settings)
    assert "no time is saved" in trainer.multirate.describe()
    trainer.train()
    assert inside == [False, True, True, False, True]
    assert phases(trainer) == [0, 1, 2, 0, 1]
    for step in range(1, 6):
        saved = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{step}")
        assert not (saved.classifier.weight == 0).any(), step
    assert trainer.multirate.timing.summary()["full_steps"] == 5


def test_period_one_is_plain_trainer(tmp_path: Path) -> None:
    plain = trainer_for(tmp_path, None)
    plain.train()
    ours = trainer_for(tmp_path, MultirateConfig.random_subsets(1, turns="fixed"))
    ours.train()
    assert_same(weights(ours), weights(plain))


def test_beside_a_slow_group(tmp_path: Path) -> None:
    groups = (
        RateGroup("head", "classifier", 3, random_subset=RandomSubset(0.5)),
        RateGroup("top", r"layer\.3|pooler", 1),
        RateGroup("slow", ".*", 2, idle="drift"),
    )
    trainer = trainer_for(tmp_path, MultirateConfig(groups, turns="fixed"))
    before = weights(trainer)
    trainer.train()
    assert phases(trainer) == [0, 1, 2, 3, 4, 5]
    assert trainer.multirate.timing.summary()["full_steps"] == 3
    assert differ(weights(trainer), before) == {name for name, _ in trainer.model.named_parameters()}


BAD = {
    "nothing": ({"fraction": 0.0}, ValueError, "between 0 and 1.*got 0.0"),
    "everything": ({"fraction": 1}, ValueError, "between 0 and 1.*got 1"),
    "negative": ({"fraction": -0.5}, ValueError, "-0.5"),
    "no number": ({"fraction": "half"}, TypeError, "half"),
    "unit": ({"unit": "channel"}, ValueError, "channel"),
    "redraw": ({"redraw": "never"}, ValueError, "never"),
    "switch": ({"biases": 1}, TypeError, "biases.*1"),
    "seed": ({"seed": 0.5}, TypeError, "seed.*0.5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_subsets_are_refused(case: str) -> None:
    change, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        RandomSubset(**change)


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"idle": "long_step", "random_subset": RandomSubset()}, ValueError, "idle='long_step'.*leave idle out"),
        ({"random_subset": 0.5}, TypeError, "must be a RandomSubset, got 0.5"),
        ({"random_subset": RandomSubset(redraw="step")}, ValueError, "set period=1"),
    ],
)
def test_bad_rate_groups_are_refused(settings: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        RateGroup("a", ".*", 4, **settings)


@pytest.mark.parametrize(
    ("patterns", "subset", "words"),
    [
        ("lstm", RandomSubset(), "'subset' matches no trainable parameter"),
        ("bias$", RandomSubset(), "none of its 4 parameters can be in it"),
    ],
)
def test_subsets_of_nothing_are_refused(patterns: str, subset: RandomSubset, words: str) -> None:
    model = network()
    config = MultirateConfig.random_subsets(4, subset, patterns, turns="fixed")
    with pytest.raises(ValueError, match=words):
        Multirate(config).attach(model, SGD(model.parameters(), lr=0.1))


class Momenta(SGD):
    """Keeps a mean of the gradients: a new tensor at each step, or a tensor of codes."""

    codes = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        del closure
        for parameter in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            mean = 0.9 * self.state[parameter].get("mean", 0.0) + parameter.grad
            self.state[parameter]["mean"] = mean.to(torch.uint8) if self.codes else mean
            parameter.sub_(self.param_groups[0]["lr"] * mean)


class Codes(Momenta):
    codes = True


def test_state_of_what_is_held_stays_in_an_optimizer_that_replaces_it() -> None:
    model = network()
    optimizer = Momenta(model.parameters(), lr=0.1)
    subset, last = RandomSubset(0.5), torch.zeros(0)
    for step in loop(model, optimizer, MultirateConfig.random_subsets(PERIOD, subset, turns="fixed")):
        mean = optimizer.state[model[0].weight]["mean"].clone()
        if step % PERIOD:
            mask = draw(subset, step // PERIOD, "0.weight", model[0].weight)
            assert torch.equal(last[mask], mean[mask])
            assert (last[mask] != 0).all()
        last = mean


def test_state_in_codes_is_refused() -> None:
    model = network()
    steps = loop(model, Codes(model.parameters(), lr=0.1), MultirateConfig.random_subsets(2, turns="fixed"))
    with pytest.raises(ValueError, match=r"optimizer Codes keeps its state 'mean' as torch\.uint8 codes"):
        list(steps)


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.random_subsets(2, turns="fixed")).attach(model, optimizer) as multirate:
        multirate.set_step(1)
        with pytest.raises(ValueError, match=r"shape \(9, 4\).*sparse=False"), multirate.micro_batch():
            model(torch.tensor([[1, 2]])).sum().backward()


@pytest.mark.parametrize(
    "config",
    [MultirateConfig.random_subsets(2, turns="fixed"), MultirateConfig.two_rate("^5", 2, turns="fixed", idle="drift")],
)
def test_closures_are_refused(config: MultirateConfig) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch(0)[0]).square().sum()
        loss.backward()
        return loss

    with Multirate(MultirateConfig.off()).attach(model, optimizer) as multirate:
        multirate.begin_step(0)
        assert optimizer.step(closure)
    with Multirate(config).attach(model, optimizer) as multirate:
        for call in (lambda: optimizer.step(closure), lambda: optimizer.step(closure=closure)):
            multirate.begin_step(0)
            with pytest.raises(ValueError, match=r"runs backward inside of the step.*Call backward first"):
                call()


def test_config_survives_json() -> None:
    config = MultirateConfig.random_subsets(
        3, RandomSubset(0.2, "neuron", True, True, seed=5), "weight$", turns="fixed"
    )
    assert MultirateConfig.from_dict(config.to_dict()) == config
    values = config.to_dict()
    values["groups"][0]["random_subset"]["colour"] = 1
    with pytest.raises(ValueError, match=r"RandomSubset: unknown keys.*colour"):
        MultirateConfig.from_dict(values)


def test_the_only_neuron_of_a_layer_is_never_in_a_subset() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    chosen = MultirateConfig.random_subsets(3, RandomSubset(unit="neuron"), "^1", turns="fixed")
    with pytest.raises(ValueError, match="one dimension or one row"):
        Multirate(chosen).attach(model, SGD(model.parameters(), lr=0.1))
