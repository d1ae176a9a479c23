"""Groups with period ``"never"`` in custom training loops, in descriptions and in plans."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW

from hf_multirate import Multirate, MultirateConfig, RateGroup, multirate_parameter_groups, plan
from hf_multirate.backward.frozen_forward import FrozenForward
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.model.cost_model import layers_of, step_cost
from hf_multirate.model.partition import assign, settle
from tests.support.runs import assert_same, example
from tests.support.small import batch, network


CONFIG = MultirateConfig((RateGroup("top", "^5", 1), RateGroup("middle", "^3", 2), RateGroup("rest", ".*", "never")))
TOP = MultirateConfig.two_rate("^5", "never")
FROZEN = {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def train(model: nn.Module, config: MultirateConfig, optimizer: Any, steps: int = 6) -> None:
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(steps):
            inputs, labels = batch(step)
            multirate.begin_step(step)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("config", [TOP, CONFIG], ids=["never", "with periods"])
def test_loop_is_that_of_a_model_frozen_by_hand(config: MultirateConfig) -> None:
    model, other = network(), network()
    never = FROZEN if config is TOP else FROZEN - {"3.weight", "3.bias"}
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(name not in never)
    optimizer = AdamW(multirate_parameter_groups(model, config, lr=1e-2, weight_decay=0.1))
    train(model, config, optimizer)
    others = MultirateConfig([group for group in config.groups if not group.is_never])
    train(other, others, AdamW(multirate_parameter_groups(other, others, lr=1e-2, weight_decay=0.1)))
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert all(flags(model).values())
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, p in model.named_parameters() if p not in held} == never


def test_unfreezing_a_frozen_group_in_training_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    before = copy.deepcopy(model[0])
    optimizer = AdamW(multirate_parameter_groups(model, TOP, lr=1e-2))
    with Multirate(TOP).attach(model, optimizer) as multirate:
        for step in range(4):
            inputs, labels = batch(step)
            multirate.begin_step(step)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            model[0].requires_grad_(True)
            assert model[0].weight.grad is None
            assert ("were unfrozen during training" in caplog.text) == (step > 0)
    assert caplog.text.count("2 parameters of rate groups with period 'never' were unfrozen during training") == 1
    assert_same(dict(model[0].state_dict()), dict(before.state_dict()))


def test_requires_grad_is_off_while_attached_only() -> None:
    model = network()
    model[2].bias.requires_grad_(False)
    before = flags(model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with Multirate(TOP).attach(model, SGD(model.parameters(), lr=0.1)) as multirate:
        assert {name for name, flag in flags(model).items() if not flag} == FROZEN
        assert model[0].weight.grad is None, "the optimizer would apply it"
        assert set(multirate.partition.never_names) == FROZEN - {"2.bias"}
        assert multirate.partition.frozen == ("2.bias",)
        assert multirate.changes_training
        assert not multirate.skips_backward
    assert flags(model) == before


def test_requires_grad_is_restored_if_attach_fails() -> None:
    model = network()
    with pytest.raises(ValueError, match="optimizer"):
        Multirate(TOP).attach(model, SGD([model[0].weight], lr=0.1))
    assert all(flags(model).values())


def test_freeze_never_outlasts_attach() -> None:
    model = network()
    multirate = Multirate(TOP).freeze_never(model)
    assert {name for name, flag in flags(model).items() if not flag} == FROZEN
    multirate.attach(model, SGD(model.parameters(), lr=0.1)).detach()
    assert {name for name, flag in flags(model).items() if not flag} == FROZEN
    assert multirate.settled.groups == TOP.groups[:1]
    multirate.thaw_never()
    multirate.thaw_never()
    assert all(flags(model).values())


def test_freeze_never_of_another_model_thaws_the_first() -> None:
    first, second = network(), network()
    multirate = Multirate(TOP).freeze_never(first).freeze_never(second)
    assert all(flags(first).values())
    assert not all(flags(second).values())
    copied = copy.deepcopy(multirate)
    copied.detach()
    assert not all(flags(second).values()), "a copy of the controller changes nothing"
    multirate.thaw_never()
    assert all(flags(second).values())


def test_a_wrapper_that_was_applied_before(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = network()
        wrapped = DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"groups \['slow'\] have period 'never', but .* freeze_never\(model\)"):
            Multirate(TOP).attach(wrapped, SGD(model.parameters(), lr=0.1))
        assert all(flags(model).values())
        multirate = Multirate(TOP).freeze_never(model)
        multirate.attach(DistributedDataParallel(model), SGD(model.parameters(), lr=0.1)).detach()
        multirate.thaw_never()
    finally:
        dist.destroy_process_group()


def test_groups_are_settled_alike_before_and_while_they_are_frozen() -> None:
    model = network()
    before = settle(CONFIG, model)
    multirate = Multirate(CONFIG).freeze_never(model)
    after = settle(CONFIG, model)
    assert before[0] == after[0]
    assert dict(before[1]) == dict(after[1])
    assert before[1].never == after[1].never == {"rest": ("0.weight", "0.bias", "2.weight", "2.bias")}
    assert "never: 4" in repr(after[1])
    assert set(assign(CONFIG, model)) == {"top", "middle", "rest"}
    multirate.thaw_never()


@pytest.mark.parametrize("family", ["bert", "t5", "deberta-v3"])
@pytest.mark.parametrize("fast", ["part:2/3", "last:1"])
def test_presets_choose_the_same_blocks_while_they_are_frozen(family: str, fast: str) -> None:
    model, _ = example(family)
    groups = (RateGroup("fast", fast, 1), RateGroup("upper", "part:1/3", "never"), RateGroup("rest", ".*", "never"))
    config = MultirateConfig(groups[::2] if fast == "last:1" else groups, lr_decay=0.5)
    multirate = Multirate(config).assign(model)
    parts, never, rates = dict(multirate.partition), multirate.partition.never, rates_of(model, config)
    multirate.freeze_never(model)
    assert dict(multirate.partition) == parts
    assert multirate.partition.never == never
    assert rates_of(model, config) == rates
    multirate.thaw_never()


def rates_of(model: nn.Module, config: MultirateConfig) -> list[float]:
    return [group["lr"] for group in multirate_parameter_groups(model, config, lr=1.0)]


def test_modules_that_are_inactive() -> None:
    model, _ = example("bert")
    config = MultirateConfig(
        (RateGroup("a", "last:1", 1), RateGroup("b", r"layer\.2\.", 2), RateGroup("c", ".*", "never"))
    )
    settled, partition = settle(config, model)
    parameters = dict(model.named_parameters())
    groups = partition.parameters(model)
    never = {name: parameters[name] for name in partition.never_names}
    forward = FrozenForward(model, never, groups, InactiveForward(settled, AdamW, compiled=False, sharded=False))
    wanted = [model.bert.embeddings, model.bert.encoder.layer[0], model.bert.encoder.layer[1]]
    assert forward.modules((0, 1)) == wanted
    assert forward.modules((0,)) == wanted
    forward.close()


def test_description_and_prediction_are_relative_to_standard_training() -> None:
    model, _ = example("bert")
    multirate = Multirate(MultirateConfig.two_rate("last:2", "never")).assign(model)
    text = multirate.describe()
    layers = layers_of(model)
    every = {name for name, _ in model.named_parameters()}
    share = step_cost(layers, set(multirate.partition["fast"])) / step_cost(layers, every)
    assert share < 0.8
    row = next(line for line in text.splitlines() if line.startswith("slow"))
    assert row.split()[1:3] == ["never", "-"]
    assert f"predicted cost {share:.2f} of a step of standard training" in text
    assert f"predicted speed-up: {1 / share:.2f}x" in text
    with multirate.attach(model, AdamW(model.parameters())):
        assert multirate.timing.speedup_predicted == pytest.approx(1 / share)
        assert multirate.describe() == text


def test_speed_up_with_other_periods() -> None:
    model, _ = example("bert")
    config = MultirateConfig(
        (RateGroup("a", "last:1", 1), RateGroup("b", r"layer\.2\.", 2), RateGroup("c", ".*", "never")), turns="fixed"
    )
    multirate = Multirate(config).assign(model)
    layers, parts = layers_of(model), multirate.partition
    costs = [step_cost(layers, set(names)) for names in (parts["a"], {*parts["a"], *parts["b"]})]
    standard = step_cost(layers, {name for name, _ in model.named_parameters()})
    with multirate.attach(model, AdamW(model.parameters())):
        assert multirate.timing.speedup_predicted == pytest.approx(2 * standard / sum(costs))
        assert multirate.timing.full_cost == pytest.approx(costs[1] / standard)
    assert "with a, b live" in multirate.describe()


def test_plan_counts_from_standard_training() -> None:
    model, rows = example("bert", 4)
    data = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    before = flags(model)
    never = MultirateConfig.two_rate("last:2", "never")
    found, fast, off = plan(
        model,
        data,
        {"never": never, "two rates": MultirateConfig.two_rate("last:2", 1000), "off": MultirateConfig.off()},
        measure=True,
    )
    assert flags(model) == before
    assert [(group.name, group.period) for group in found.groups] == [("fast", 1), ("slow", "never")]
    assert found.steps[0].flops == min(step.flops for step in fast.steps)
    assert found.speedup == pytest.approx(off.steps[0].flops / found.steps[0].flops)
    assert found.speedup == found.bound > 1.2
    assert found.steps[0].boundary == fast.steps[1].boundary is not None
    assert found.steps[0].memory < off.steps[0].memory
    assert found.speedup_measured is not None
    assert sum(g.activation_gradients + g.weight_gradients + g.forward for g in found.groups) == pytest.approx(
        sum(g.activation_gradients + g.weight_gradients + g.forward for g in fast.groups)
    )
    assert found.blockers == ()
