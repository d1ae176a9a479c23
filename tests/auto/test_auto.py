"""Automatic training: the ladder is the best one, the budget is kept, and the same run gives the same plan."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from itertools import combinations_with_replacement, pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import HfArgumentParser, TrainerCallback

from hf_multirate import Multirate, MultirateConfig, MultirateTrainingArguments, RateGroup, plan
from hf_multirate.auto import periods as policy_module
from hf_multirate.auto import work_counter as work_module
from hf_multirate.auto.estimates import DECAY, Estimate, Signals
from hf_multirate.auto.periods import ladder, work_of
from hf_multirate.auto.work_counter import CountedWork
from hf_multirate.config.budget import Budget
from hf_multirate.config.schedule import Schedule, Stages
from hf_multirate.distributed import GradSync
from hf_multirate.distributed.synced_step import SyncedStep
from hf_multirate.model.blocks import block_groups
from hf_multirate.model.partition import assign
from hf_multirate.planning.measure import count
from hf_multirate.reporting import report
from hf_multirate.reporting.charts import charts
from hf_multirate.reporting.run_record import card_section, read_record
from tests.support.damage import rewrite
from tests.support.runs import FIVE, Watched, arguments, assert_same, example, history, trainer_for, weights
from tests.support.tiny import FAMILIES


# peft reads the old name of a property of transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

SHORT = Budget(1.6, longest=4, cycles=1)
"""A plan from step 1 on, and others from 6, 11 and so on."""

STEPS = 30


def short(speedup: float = 1.6, *, drift: bool = False, **settings: Any) -> MultirateConfig:
    return MultirateConfig((), budget=Budget(speedup, longest=4, cycles=1, drift=drift), **settings)


def run_steps(controller: Multirate, optimizer: Optimizer, steps: int, loss: Callable[[], Tensor]) -> None:
    """A loop of one's own, from step 0 on."""
    for step in range(steps):
        controller.begin_step(step)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()


# ---- policy and signals


@pytest.mark.parametrize("seed", range(25))
def test_no_ladder_within_the_budget_loses_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    number = int(random.integers(2, 9))
    worth = list(random.uniform(0.1, 3, number))
    costs = random.uniform(0.05, 1, number)
    costs = list(0.7 * costs / costs.sum())
    budget = float(random.uniform(0.45, 1.0))
    found = ladder(worth, costs, 0.3, budget, 16)
    every = [(1, *rest) for rest in combinations_with_replacement([1, 2, 4, 8, 16], number - 1)]
    fit = [periods for periods in every if work_of(costs, 0.3, periods) <= budget]

    def lost(periods: tuple[int, ...]) -> float:
        return sum(value * (1 - sqrt(1 / period)) for value, period in zip(worth, periods, strict=True))

    if not fit:
        assert found == (1, *[16] * (number - 1))
        return
    assert found in fit
    assert lost(found) == pytest.approx(min(map(lost, fit)))


def test_more_worth_or_less_cost_means_more_gradients() -> None:
    level = ladder([1.0] * 6, [0.1] * 6, 0.3, 0.5, 16)
    falling = ladder([32.0, 16.0, 8.0, 4.0, 2.0, 1.0], [0.1] * 6, 0.3, 0.5, 16)
    assert falling[1] < level[1]
    assert falling[-1] > level[-1]
    assert ladder([1.0] * 3, [0.1, 0.5, 0.05], 0.3, 0.6, 16) == (1, 4, 4)
    assert ladder([1.0] * 3, [0.1, 0.05, 0.5], 0.3, 0.6, 16) == (1, 1, 4)


def test_a_deep_model_has_a_ladder_too() -> None:
    periods = ladder([1.0] * 200, [0.7 / 200] * 200, 0.3, 0.5, 16)
    assert work_of([0.7 / 200] * 200, 0.3, periods) <= 0.5
    assert list(periods) == sorted(periods)


def test_an_estimate_is_the_weighted_mean_and_its_error() -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, 40)
    estimate = Estimate()
    assert estimate.error is None
    for sample in samples:
        estimate.add(float(sample))
    weight = DECAY ** np.arange(len(samples))[::-1]
    mean = np.average(samples, weights=weight)
    variance = (weight * (samples - mean) ** 2).sum() / (weight.sum() - (weight**2).sum() / weight.sum())
    assert estimate.mean == pytest.approx(mean)
    assert estimate.error == pytest.approx(np.sqrt(variance * (weight**2).sum()) / weight.sum())


def test_the_error_is_as_large_as_the_mean_really_scatters() -> None:
    random = np.random.default_rng(1)
    estimates = [Estimate() for _ in range(400)]
    for estimate in estimates:
        for sample in random.normal(0.0, 1.0, 30):
            estimate.add(float(sample))
    scatter = np.std([estimate.mean for estimate in estimates])
    errors = [estimate.error for estimate in estimates]
    assert np.mean(np.array(errors, dtype=float)) == pytest.approx(scatter, rel=0.1)


def filled(*blocks: dict[int, list[float]]) -> Signals:
    """Signals with these samples by age, for each block."""
    signals = Signals(len(blocks))
    for block, ages in enumerate(blocks):
        for age, samples in ages.items():
            for sample in samples:
                signals.add(block, age, sample)
    return signals


def test_worth_is_between_what_is_expected_and_what_was_measured() -> None:
    """As two measurements with errors of their own are combined."""
    signals = filled(
        {1: [4.0, 4.2, 3.8]}, {1: [-1.0, 5.5, 0.5]}, {1: [-0.20, -0.21, -0.19]}, {1: [3.0, 3.1]}, {}, {1: [0.0] * 3}
    )
    expected = [4.0, 2.0, 1.0, 1.0, 0.5, 0.3]
    worth = signals.given(expected)
    assert worth is not None
    usual = [worth[4] / 0.5 * value for value in expected]  # where nothing is known it is what is expected
    assert 0.1 < worth[4] / 0.5 < 1.0
    assert worth[3] == usual[3]  # two samples say nothing
    estimate = signals.worth(1)
    errors = [estimate.error, usual[1]]
    assert worth[1] == pytest.approx(np.average([estimate.mean, usual[1]], weights=[1 / e**2 for e in errors]))
    assert worth[0] == pytest.approx(4.0, rel=0.02)  # measured well
    assert worth[2] == pytest.approx(0.1 * usual[2])  # measured well to be worth nothing
    assert worth[5] == pytest.approx(0.1 * usual[5])


def test_the_scale_of_what_is_expected_is_that_of_most_of_the_worth() -> None:
    """A block that is known well to be worth next to nothing does not undo what is known of the others."""
    large = {1: [80.0, 100.0, 120.0]}
    expected = [1.0, 0.4, 0.16, 0.0625]
    for small in (1e-3, 1e-8, 0.0):
        worth = filled(large, large, large, {1: [small, 1.1 * small, 0.9 * small]}).given(expected)
        assert worth is not None
        assert all(80 < value < 105 for value in worth[:3])
    assert filled({1: [2.0] * 3}, {1: [1.0] * 3}).given([2.0, 1.0]) == pytest.approx([2.0, 1.0])


@pytest.mark.parametrize(
    "samples", [{1: [-1.0, 1.0, -1.0]}, {1: [5.0, 5.1]}, {}], ids=["nothing but noise", "two samples", "none"]
)
def test_no_worth_to_go_by(samples: dict[int, list[float]]) -> None:
    assert filled(samples, {1: [-1.0, 1.5, -0.8]}).given([2.0, 1.0]) is None


def test_what_is_usual_falls_with_depth_in_models_of_any_depth() -> None:
    assert policy_module.expected(3) == pytest.approx([1, 1 / 4, 1 / 16])
    assert policy_module.expected(1) == [1]
    assert policy_module.expected(26)[-1] == pytest.approx(1 / 16)


def test_drift_lasts_as_long_as_it_is_known_to_help() -> None:
    good, bad = [2.0, 2.2, 1.8], [-2.0, -2.2, -1.8]
    assert filled({1: bad}).drift_steps(0, 8, 0.0) == 0
    assert filled({1: good}).drift_steps(0, 8, 0.0) == 1
    assert filled({1: good, 8: good}).drift_steps(0, 8, 0.0) == 7
    assert filled({1: good, 4: bad, 8: good}).drift_steps(0, 8, 0.0) == 1
    assert filled({1: good, 8: bad}).drift_steps(0, 4, 0.0) == 1
    assert filled({1: good, 4: good}).drift_steps(0, 2, 0.0) == 1
    assert filled({1: good}).drift_steps(0, 1, 0.0) == 0


def test_drift_lasts_as_long_as_it_pays_for_its_work() -> None:
    signals = filled({1: [2.0, 2.2, 1.8], 4: [1.0, 1.1, 0.9], 8: [0.4, 0.5, 0.3]})
    assert [signals.drift_steps(0, 16, least) for least in (0.1, 0.3, 0.6, 1.1)] == [8, 4, 1, 0]


# ---- blocks and work


def test_blocks_of_a_stack_go_from_the_top_down() -> None:
    model, _ = FAMILIES["bert"]()
    groups = block_groups(model)
    names = [group.name for group in groups]
    assert names == ["head", "block_3", "block_2", "block_1", "block_0", "embeddings"]
    partition = assign(MultirateConfig(groups), model)
    assert partition["head"] == (
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"
    )  # fmt: skip
    assert all(name.startswith("bert.encoder.layer.2.") for name in partition["block_2"])
    assert all(name.startswith("bert.embeddings.") for name in partition["embeddings"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_is_in_one_block(family: str) -> None:
    model, _ = FAMILIES[family]()
    groups = block_groups(model)
    partition = assign(MultirateConfig(groups), model)
    assert sum(map(len, partition.values())) == len(list(model.parameters()))
    assert len(groups) > 2


def test_blocks_of_a_model_without_a_stack_are_its_children() -> None:
    layers = {"in": nn.Linear(4, 5), "norm": nn.LayerNorm(5), "conv": nn.Conv1d(1, 1, 1), "out": nn.Linear(5, 2)}
    inner = nn.ModuleDict(layers)
    assert [group.name for group in block_groups(inner)] == ["out", "conv", "norm", "in"]
    outer = nn.ModuleDict({"net": inner})
    assert [group.name for group in block_groups(outer)] == ["net.out", "net.conv", "net.norm", "net.in"]
    inner["out"].requires_grad_(False)
    assert [group.name for group in block_groups(inner)] == ["conv", "norm", "in"]


def test_layers_of_a_flat_sequence_are_its_blocks() -> None:
    inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Conv1d(1, 1, 1), nn.Linear(5, 2))
    assert [group.name for group in block_groups(inner)] == ["block_4", "block_3", "block_0"]


def test_a_tied_weight_lies_as_deep_as_its_deepest_place() -> None:
    model, _ = FAMILIES["gpt2-lm"]()
    partition = assign(MultirateConfig(block_groups(model)), model)
    assert "transformer.wte.weight" in partition["embeddings"]
    flat = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Bilinear(3, 3, 3), nn.Linear(3, 3))
    flat[3].weight = flat[0].weight
    assert "0.weight" in assign(MultirateConfig(block_groups(flat)), flat)["block_0"]


def test_blocks_of_adapters() -> None:
    model, _ = FAMILIES["bert"]()
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    groups = block_groups(model)
    assert [group.name for group in groups] == ["head", "block_3", "block_2", "block_1", "block_0"]
    partition = assign(MultirateConfig(groups), model)
    assert all("lora_" in name for name in partition["block_1"])


def test_nothing_trainable() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        Multirate(MultirateConfig.auto()).assign(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "vit", "resnet", "bert-lora"])
def test_work_is_what_the_operations_come_to(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's count of a step, with what neither has: optimizer, and products of activations."""
    monkeypatch.setattr(work_module, "UPDATE", 0.0)
    model, batch = FAMILIES[family.removesuffix("-lora")]()
    if family.endswith("-lora"):
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    members = list(assign(MultirateConfig(block_groups(model)), model).values())
    work = CountedWork(model, watch=True)
    work.look()
    model.train()
    model(**batch)
    found = work.by_depth(members, None)
    named = dict(model.named_parameters())
    totals = []
    for depth in range(1, len(members) + 1):
        live = {name for names in members[:depth] for name in names}
        for name, parameter in named.items():
            parameter.requires_grad_(name in live)
        totals.append(count(model, batch, 1.0).total)
    # In ViT a token that is a bare parameter is taken for something below the patches.
    assert found[1:] == pytest.approx([t / totals[-1] for t in totals], abs=0.1 if family == "vit" else 0.06)


def test_work_is_not_the_number_of_parameters_alone() -> None:
    """Early layers of a network for images have few parameters and many places to use them at."""
    model, batch = FAMILIES["resnet"]()
    members = list(assign(MultirateConfig(block_groups(model)), model).values())
    blind = CountedWork(model, watch=False).by_depth(members, None)
    work = CountedWork(model, watch=True)
    work.look()
    model.train()(**batch)
    seen = work.by_depth(members, None)
    work.stop()
    assert seen[3] < blind[3] - 0.1
    assert not any(module._forward_hooks for module in model.modules())


# ---- training


def differ_in(names: tuple[str, ...], one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    return {name for name in names if not torch.equal(one[name], other[name])}


def trained(folder: Path, config: MultirateConfig, family: str = "bert", **rest: Any) -> Any:
    trainer = trainer_for(folder, config, family, **({"max_steps": STEPS} | rest))
    trainer.train()
    return trainer


def test_gradients_are_where_the_plan_has_them(tmp_path: Path) -> None:
    model, rows = example("bert")
    trainer = Watched(model=model, args=arguments(tmp_path, max_steps=STEPS), train_dataset=rows, multirate=short())
    trainer.train()
    controller = trainer.multirate
    starts = [plan.start for plan in controller.plans]
    assert starts == [0, 1, 6, 11, 16, 21, 26]
    members = controller.partition
    names = list(members)
    depths = set()
    for step, live in trainer.seen:
        plan = next(plan for plan in reversed(controller.plans) if plan.start <= step)
        expected = {name for i in plan.schedule.live(step) for name in members[names[i]]}
        assert live == expected
        depths.add(len(plan.schedule.live(step)))
    assert len(depths) > 1
    assert controller.plans[0].periods == (1,) * len(names)
    for plan in controller.plans:
        assert list(plan.periods) == sorted(plan.periods)
        assert plan.periods[0] == 1
        assert max(plan.periods) <= SHORT.longest


def test_blocks_drift_as_long_as_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signals, "drift_steps", lambda self, block, period, least: min(block % 3, period - 1))
    monkeypatch.setattr(work_module, "UPDATE", 0.1)
    trainer = trainer_for(tmp_path, short(1.5, drift=True), max_steps=STEPS, lr_scheduler_type="constant")
    controller, before, moved = trainer.multirate, weights(trainer), []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal before
            now = weights(trainer)
            moved.append({block: bool(differ_in(names, before, now)) for block, names in controller.partition.items()})
            before = now

    trainer.add_callback(Look())
    trainer.train()
    drifted = set()
    for step, of_step in enumerate(moved):
        plan = next(plan for plan in reversed(controller.plans) if plan.start <= step)
        for index, block in enumerate(controller.partition):
            since = plan.schedule.steps_since_refresh(index, step)
            assert of_step[block] == (since <= plan.drift[index])
            drifted.add((since > 0, of_step[block]))
    assert drifted == {(False, True), (True, True), (True, False)}


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_a_shorter_drift_has_to_be_worth_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    asked = []

    def drift_steps(self: Signals, block: int, period: int, least: float) -> int:
        asked.append((block, least))
        return 0

    monkeypatch.setattr(Signals, "drift_steps", drift_steps)
    planner = trained(tmp_path, short(1.9, drift=True, drift_scale=scale)).multirate._planner
    work = planner.account.depths
    expected = {i: planner.account.updates[i] / (work[i + 1] - work[i]) / scale for i in range(6)} if scale else {}
    assert dict(asked) == pytest.approx(expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_drift_is_paid_for_by_gradients(monkeypatch: pytest.MonkeyPatch, steps: int, known: bool) -> None:
    """Also where it takes as much as in small batches, and where the end of training is not known."""
    monkeypatch.setattr(Signals, "drift_steps", lambda self, block, period, least: min(steps, period - 1))
    monkeypatch.setattr(work_module, "UPDATE", 4.0)
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(16, 16), nn.Tanh())])
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    with Multirate(short(1.5, drift=True)).attach(model, optimizer) as controller:
        controller.total_steps = 100 if known else None
        run_steps(controller, optimizer, 100, lambda: model(torch.ones(16, 16)).square().mean())
        assert any(any(plan.drift) for plan in controller.plans)
        assert controller.telemetry.predicted_so_far > 1.45


def test_nothing_drifts_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signals, "drift_steps", lambda self, block, period, least: period - 1)
    monkeypatch.setattr(work_module, "UPDATE", 1.0)
    for asked in (False, True):
        controller = trained(tmp_path, MultirateConfig.auto(1.5, longest=4, drift=asked)).multirate
        assert any(any(plan.drift) for plan in controller.plans) == asked


def test_drift_is_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Signals, "drift_steps", lambda self, block, period, least: period - 1)
    monkeypatch.setattr(work_module, "UPDATE", 1.0)
    controller = trained(tmp_path, short(1.5, drift=True)).multirate
    planner = controller._planner
    start, plan = max((plan.start, plan) for plan in planner.plans)
    step = next(step for step in range(start, STEPS) if plan.schedule.live(step) == (0,))
    since = [plan.schedule.steps_since_refresh(block, step) for block in range(6)]
    idle = sum(planner.account.updates[block] for block in range(1, 6) if since[block] <= plan.drift[block])
    assert idle > 0.01
    assert planner.cost(step) == pytest.approx(planner.account.depths[1] + idle)
    spent = sum(planner.cost(at) for at in range(start, step + 1))
    assert spent > sum(planner.account.depths[len(plan.schedule.live(at))] for at in range(start, step + 1)) + 0.01


@pytest.mark.parametrize(("drift", "known"), [(True, {1, 2, 4}), (False, {1})])
def test_a_signal_is_of_the_age_of_the_update_it_is_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drift: bool, known: set[int]
) -> None:
    trainer = trainer_for(tmp_path, short(1.9, drift=drift), max_steps=STEPS)
    controller, last, ages = trainer.multirate, dict.fromkeys(range(6), -1), set()

    def add(self: Signals, block: int, age: int, value: float) -> None:
        del self, value
        assert age == controller.step - last[block]
        ages.add(age)

    class Note(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            last.update(dict.fromkeys(controller.schedule.live(controller.step), controller.step))

    monkeypatch.setattr(Signals, "add", add)
    trainer.add_callback(Note())
    trainer.train()
    assert ages == known


def test_a_step_is_answered_for_by_the_schedule_it_is_in() -> None:
    old, new = Schedule((1, 2)), Schedule((1, 4), initial_full_steps=5)
    stages = Stages(((0, old),)).then(4, new)
    assert [stages.live(step) for step in range(8)] == [old.live(s) for s in range(4)] + [
        new.live(s) for s in range(4, 8)
    ]
    assert stages.steps_since_refresh(1, 3) == 1
    assert [stages.full(step) for step in (2, 3, 4, 5, 6)] == [True, False, True, True, False]
    assert (stages.phase(3), stages.phase(6), stages.cycle, stages.initial_full_steps) == (1, 1, 4, 5)


def test_ranks_are_compared_at_refreshes_of_the_plan_in_force() -> None:
    shared = SyncedStep(short(check_ranks=1), GradSync(), {})
    shared._compared = True
    shared.set_schedule(Stages(((3, Schedule((1, 2), 4)), (8, Schedule((1, 4), 9)))))
    assert [step for step in range(9, 20) if shared.compares(step)] == [9, 13, 17]


@pytest.mark.parametrize("speedup", [1.2, 1.5, 1.8])
def test_the_budget_is_kept(tmp_path: Path, speedup: float) -> None:
    trainer = trained(tmp_path, short(speedup), max_steps=120)
    assert trainer.multirate.telemetry.predicted_so_far == pytest.approx(speedup, rel=0.05)
    assert trainer.multirate.telemetry.predicted_so_far > 0.995 * speedup


def test_the_budget_is_kept_where_the_end_is_not_known() -> None:
    model, batch = FAMILIES["bert"]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Multirate(short(1.5)).attach(model, optimizer) as controller:
        run_steps(controller, optimizer, 120, lambda: model(**batch).loss)
    assert controller.telemetry.predicted_so_far == pytest.approx(1.5, rel=0.05)


def test_speedup_one_is_plain_training(tmp_path: Path) -> None:
    ours, plain = trained(tmp_path, short(1.0)), trainer_for(tmp_path, None, max_steps=STEPS)
    plain.train()
    assert_same(weights(ours), weights(plain))


def test_the_same_run_has_the_same_plan(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, short()) for _ in range(2))
    assert one.multirate.plans == other.multirate.plans
    assert_same(weights(one), weights(other))
    assert len({plan.periods for plan in one.multirate.plans}) > 1


CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "momentum": {"optimizer_cls_and_kwargs": (SGD, {"lr": 0.05, "momentum": 0.9})},
    "rmsprop": {"optim": "rmsprop"},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_in_the_middle_of_a_plan_is_the_whole_run(tmp_path: Path, case: str, drift: bool) -> None:
    if not FIVE and case == "accumulation":
        pytest.skip("plain Trainer of 4.57 does not resume to the bit with accumulation")
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 24, **CASES[case]}
    whole = trained(tmp_path / "whole", short(drift=drift), **saving)
    # Before the first plan, after its first step, within it, before another. An epoch has six steps, and plain Trainer
    # of 4.57 does not resume to the bit in a second one.
    for step in (1, 2, 8, 11, 14) if FIVE else (1, 2, 4, 6):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = trainer_for(folder, short(drift=drift), **saving)
        again.train(resume_from_checkpoint=True)
        assert again.multirate.plans == whole.multirate.plans
        assert_same(weights(again), weights(whole))
        assert history(again)[step:] == history(whole)[step:]


def test_what_was_measured_survives_a_restart() -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(64, 6), torch.randint(0, 3, (64,))

    def run(start: int, kept: dict[str, Any]) -> tuple[Any, dict[int, dict[str, Any]]]:
        torch.manual_seed(1)
        model = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        states: dict[int, dict[str, Any]] = {}
        with Multirate(short()).attach(model, optimizer) as controller:
            if kept:
                model.load_state_dict(kept["model"])
                optimizer.load_state_dict(kept["optimizer"])
                controller.load_state_dict(kept["multirate"])
            for step in range(start, 40):
                parts = {"model": model, "optimizer": optimizer, "multirate": controller}
                states[step] = copy.deepcopy({name: part.state_dict() for name, part in parts.items()}) if step else {}
                controller.begin_step(step)
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
            return (list(controller.plans), model.state_dict()), states

    (plans, weights_of_whole), states = run(0, {})
    assert sum(plan.worth is not None for plan in plans) > 3
    assert len({plan.periods for plan in plans}) > 2
    for step in (3, 13, 16, 29):
        (again, weights_of_rest), _ = run(step, states[step])
        assert again == plans
        assert_same(weights_of_rest, weights_of_whole)


def test_a_checkpoint_of_other_blocks_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, short(), max_steps=5, save_strategy="steps", save_steps=5)
    path = tmp_path / "checkpoint-5" / "multirate.json"
    rewrite(path, lambda state: {**state, "plan": {**state["plan"], "blocks": ["head", "rest"]}})
    with pytest.raises(ValueError, match=r"a plan for the blocks \['head', 'rest'\]"):
        trainer_for(tmp_path, short(), max_steps=9).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_plan_begins_one(tmp_path: Path) -> None:
    fixed = MultirateConfig.two_rate("last:1", 4)
    trained(tmp_path, fixed, max_steps=5, save_strategy="steps", save_steps=5)
    again = trainer_for(tmp_path, short(), max_steps=30)
    again.train(resume_from_checkpoint=True)
    assert [plan.start for plan in again.multirate.plans][:3] == [5, 6, 11]


@pytest.mark.parametrize("family", ["bert", "gpt2-lm", "llama-lm", "t5", "bart", "vit", "resnet", "deberta-v3"])
def test_it_trains_many_families(tmp_path: Path, family: str) -> None:
    trainer = trained(tmp_path, short(1.3), family, max_steps=16)
    assert len(trainer.multirate.plans) == 4
    assert min(len(plan.schedule.live(step)) for plan in trainer.multirate.plans for step in range(16)) < len(
        trainer.multirate.partition
    )


def test_adapters(tmp_path: Path) -> None:
    model, rows = example("bert")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = Watched(model=model, args=arguments(tmp_path, max_steps=16), train_dataset=rows, multirate=short(1.4))
    trainer.train()
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "original" not in name)
    assert len({len(live) for _, live in trainer.seen}) > 1


def test_blocks_that_the_user_names(tmp_path: Path) -> None:
    blocks = ["embeddings", r"layer\.[01]\.", r"layer\.[23]\.", "pooler|classifier"]
    trainer = trained(tmp_path, MultirateConfig.auto(1.6, blocks, longest=4))
    assert list(trainer.multirate.partition) == blocks[::-1]


def test_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    trainer = trained(tmp_path, short(), max_steps=2)  # ends while it looks for shapes
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trainer.model.modules())


# ---- signals of any optimizer, work of any step


def test_worth_is_measured_with_any_optimizer(tmp_path: Path) -> None:
    """One that repeats its displacement keeps that of the very last step, so ages are right too."""
    controller = trained(tmp_path, short(1.9), optim="rmsprop", learning_rate=1e-3).multirate
    # A gradient is held against the displacement of the step before, also where no idle step follows it.
    assert all(controller._planner.signals.worth(block).weight > 1 for block in range(6))


def test_worth_is_the_product_of_gradient_and_last_displacement() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs, labels = torch.randn(8, 3), torch.randint(0, 2, (8,))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01)
    before: dict[str, Tensor] = {}
    moved: dict[str, Tensor] = {}
    products = []
    with Multirate(short()).attach(model, optimizer) as controller:
        for step in range(3):
            controller.begin_step(step)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            if moved:
                own = [(name, p) for name, p in model.named_parameters() if name.startswith("0.")]
                products.append(sum(float((p.grad * moved[name]).sum()) for name, p in own if p.grad is not None))
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.step()
            moved = {name: (p.detach() - before[name]) / 0.01 for name, p in model.named_parameters()}
            optimizer.zero_grad()
        estimate = controller._planner.signals.worth(1)
    expected = Estimate()
    for product in products:
        expected.add(-product)
    assert len(products) == 2
    assert estimate.mean == pytest.approx(expected.mean, rel=1e-3)


@pytest.mark.parametrize("drift", [False, True])
def test_blocks_of_period_one_are_looked_at_every_other_step(monkeypatch: pytest.MonkeyPatch, drift: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs, labels = torch.randn(8, 4), torch.randint(0, 4, (8,))
    seen: list[int] = []
    add = Signals.add

    def noted(self: Signals, block: int, age: int, value: float) -> None:
        seen.append(block)
        add(self, block, age, value)

    monkeypatch.setattr(Signals, "add", noted)
    config = MultirateConfig((), budget=Budget(1.2, longest=8, cycles=2, drift=drift), turns="fixed")
    skipped = 0
    with Multirate(config).attach(model, optimizer) as controller:
        for step in range(40):
            controller.begin_step(step)
            seen.clear()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule = controller.schedule
            ones = [i for i, period in enumerate(schedule.at(step).periods) if period == 1]
            if step == 0 or len(ones) == 1:
                continue
            odd = schedule.phase(step) % 2 == 1
            assert [block for block in seen if block in ones] == ([] if odd else ones), step
            skipped += odd
    assert skipped > 8
    assert all(controller._planner.signals.worth(block).weight > 2 for block in range(4))


def test_worth_is_that_of_gradients_without_the_scale_of_a_scaler() -> None:
    """A scaler leaves it to a fused optimizer to take its scale out of the gradients."""

    def worth(scale: float | None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        inputs, labels = torch.randn(8, 3), torch.randint(0, 2, (8,))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        with Multirate(short()).attach(model, optimizer) as controller:
            for step in range(3):
                controller.begin_step(step)
                scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            decreases = controller.telemetry.worth.take({name: name for name, _ in model.named_parameters()})
            signals = [controller._planner.signals.worth(block).mean for block in range(2)]
            return signals + [value.decrease for value in decreases.values()]

    assert worth(1024.0) == pytest.approx(worth(None), rel=1e-4)


def depths(folder: Path, config: MultirateConfig | None = None, family: str = "bert", **settings: Any) -> list[float]:
    trainer = trained(folder, config or short(), family, max_steps=5, **settings)
    found: list[float] = trainer.multirate._planner.account.depths
    return found


def test_work_is_that_of_the_batches_of_full_steps_whatever_comes_before_the_first_plan() -> None:
    """Also of those after it, since batches may be sorted by length; the second plan settles it."""
    model, batch = FAMILIES["bert"]()
    model.train()
    shorter = {name: value[:, :3] if value.dim() > 1 else value for name, value in batch.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    one, two = (_depths_of(model, rows) for rows in (batch, shorter))
    with Multirate(short(initial_full_steps=3)).attach(model, optimizer) as controller:
        run_steps(controller, optimizer, 4, lambda: model(**batch).loss)
        assert controller._planner.account.depths == pytest.approx(one)
    with Multirate(short(1.9)).attach(model, optimizer) as controller:
        batches = [batch, *[shorter] * 20]
        run_steps(controller, optimizer, 7, lambda: model(**batches.pop(0)).loss)
        found, plan = controller._planner.account.depths, controller.plans[1]
        full = sum(plan.schedule.full(step) for step in range(1, 6))
        assert full < 5
        assert found[0] != pytest.approx(two[0], rel=1e-3)
        assert found == pytest.approx(_depths_of(model, *[batch, *[shorter] * full]))
        assert not any(module._forward_hooks for module in model.modules())


def _depths_of(model: nn.Module, *batches: Any) -> list[float]:
    """Counted by itself, one step for each of ``batches``."""
    work = CountedWork(model, watch=True)
    for batch in batches:
        work.look()
        model(**batch)
    work.stop()
    members = list(assign(MultirateConfig(block_groups(model)), model).values())
    return work.by_depth(members, None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_work_is_that_of_all_micro_batches_of_a_step(tmp_path: Path, checkpointing: bool) -> None:
    whole = depths(tmp_path, per_device_train_batch_size=4)
    assert depths(tmp_path, per_device_train_batch_size=2) != pytest.approx(whole, abs=1e-3)
    settings = {"gradient_checkpointing": checkpointing}
    parts = depths(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, **settings)
    assert parts == pytest.approx(whole)


def test_work_is_counted_in_evaluation_mode_too_and_not_without_gradients() -> None:
    model, batch = FAMILIES["bert"]()
    members = list(assign(MultirateConfig(block_groups(model)), model).values())

    def counted(*, training: bool, look: bool) -> list[float]:
        work = CountedWork(model, watch=True)
        work.look()
        with torch.no_grad():
            for _ in range(3 if look else 0):
                model(**batch)
        model.train(training)(**batch)
        return work.by_depth(members, None)

    assert counted(training=False, look=True) == counted(training=True, look=False)


class Twice(nn.Module):
    """Uses one of its parts twice, or is only used in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        first, second = (self.middle(self.encoder(inputs)) for inputs in (one, other))
        output: Tensor = self.head(first * second)
        return output


def test_every_use_within_a_pass_counts() -> None:
    model = Twice()
    work = CountedWork(model, watch=True)
    work.look()
    model(torch.ones(3, 8), torch.ones(3, 8)).sum().backward()
    assert work.positions == {"encoder": 6, "middle": 6, "head": 3}
    with pytest.raises(RuntimeError):
        model(torch.ones(3, 8), torch.ones(3, 7))
    model.encoder(torch.ones(50, 8))  # as where activations are recomputed
    assert work.positions["encoder"] == 9


def test_a_model_of_which_only_parts_are_called_is_counted_at_each_micro_batch() -> None:
    torch.manual_seed(0)
    model = Twice()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Multirate(short(initial_full_steps=2)).attach(model, optimizer) as controller:
        for step in range(2):
            for _ in range(3):
                controller.begin_step(step)
                model.head(model.middle(model.encoder(torch.ones(4, 8)))).sum().backward()
                controller.synchronize()
            optimizer.step()
            optimizer.zero_grad()
        state = controller.state_dict()["plan"]["account"]
    assert state["positions"] == {"encoder": 24, "middle": 24, "head": 24}
    assert state["steps"] == 2


def test_nothing_is_left_on_a_model_that_could_not_be_attached() -> None:
    model, _ = FAMILIES["bert"]()
    optimizer = SGD(list(model.parameters())[:3], lr=0.1)
    with pytest.raises(ValueError, match="not in the optimizer"):
        Multirate(short()).attach(model, optimizer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_compiled_model_has_the_work_of_a_usual_batch_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hf_multirate")
    model, batch = FAMILIES["bert"]()
    model.train()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Multirate(short(1.5)).attach(compiled, optimizer) as controller:
        run_steps(controller, optimizer, 5, lambda: compiled(**batch).loss)
        depths = controller._planner.account.depths
    assert "shapes of batches are not seen here" in caplog.text
    assert depths == pytest.approx(_depths_at(model, work_module.UNSEEN))


def _depths_at(model: nn.Module, positions: float) -> list[float]:
    members = list(assign(MultirateConfig(block_groups(model)), model).values())
    work = CountedWork(model, watch=False)
    work.look()
    work.positions = {name: positions for name, _ in model.named_modules()}
    return work.by_depth(members, None)


@pytest.mark.parametrize("longest", [2, 16, 128, 1024])
def test_the_search_for_a_ladder_has_a_bound(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def counting(*args: Any) -> Any:
        nonlocal tried
        for cuts in combinations_with_replacement(*args):
            tried += 1
            yield cuts

    monkeypatch.setattr(policy_module, "combinations_with_replacement", counting)
    periods = ladder([1.0] * 34, [0.7 / 34] * 34, 0.3, 0.6, longest)
    assert work_of([0.7 / 34] * 34, 0.3, periods) <= max(0.6, work_of([0.7 / 34] * 34, 0.3, (1, *[longest] * 33)))
    assert 1 < tried <= policy_module.LADDERS


# ---- training that is longer or shorter than it was


def test_training_that_was_short_and_goes_on_for_longer_is_planned_anew(tmp_path: Path) -> None:
    trained(tmp_path, short(), max_steps=8, save_strategy="steps", save_steps=8)
    longer = trained_on(tmp_path, max_steps=40)
    assert [plan.start for plan in longer.multirate.plans] == [0, 1, 8, 13, 18, 23, 28, 33]
    assert longer.multirate._planner.signals.worth(1).weight > 1


def trained_on(folder: Path, **rest: Any) -> Any:
    trainer = trainer_for(folder, short(), **rest)
    trainer.train(resume_from_checkpoint=True)
    return trainer


def test_training_that_was_short_at_its_first_step_has_one_plan_after_the_other(tmp_path: Path) -> None:
    trained(tmp_path, short(), max_steps=8, save_strategy="steps", save_steps=1)
    for step in range(2, 9):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    plans = trained_on(tmp_path, max_steps=40).multirate.plans
    assert [plan.start for plan in plans[:4]] == [0, 1, 6, 11]


@pytest.mark.parametrize(("speedup", "steps", "full"), [(2.8, 5, 0), (1.7, 30, 20)])
def test_a_budget_that_the_length_of_training_does_not_allow_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, speedup: float, steps: int, full: int
) -> None:
    controller = trained(tmp_path, short(speedup, initial_full_steps=full), max_steps=steps).multirate
    told = [record.getMessage() for record in caplog.records if "this run allows" in record.getMessage()]
    assert len(told) == 1
    reached = controller.telemetry.predicted_so_far
    assert reached < 0.97 * speedup
    assert float(told[0].split("allows ")[1].split()[0]) == pytest.approx(reached, abs=0.02)


def test_a_budget_that_is_met_is_not_said_to_be_out_of_reach(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert trained(tmp_path, short(1.5)).multirate.telemetry.predicted_so_far > 1.48
    assert "this run allows" not in caplog.text


def test_steps_of_each_epoch_are_refused() -> None:
    model, batch = FAMILIES["bert"]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Multirate(short(1.5)).attach(model, optimizer) as controller:
        run_steps(controller, optimizer, 5, lambda: model(**batch).loss)
        with pytest.raises(ValueError, match="step 0 was begun after step 1"):
            controller.begin_step(0)


def test_a_block_with_most_of_the_work_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    sizes = (32, 32, 4, 4, 2)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    names = [f"^{i}[.]" for i in range(4)]
    with Multirate(MultirateConfig.auto(1.5, names, longest=4)).attach(model, optimizer) as controller:
        run_steps(controller, optimizer, 6, lambda: model(torch.ones(8, 32)).square().mean())
    assert "block '^0[.]' has " in caplog.text


def test_initial_full_steps_are_full_in_training_of_any_length(tmp_path: Path) -> None:
    for steps in (10, 30):
        controller = trained(tmp_path, short(initial_full_steps=6), max_steps=steps).multirate
        assert controller.plans[0].periods == (1,) * 6
        assert controller.plans[1].start == 6


def test_the_bound_is_said_again_after_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, short(20.0), save_strategy="steps", save_steps=15)
    shutil.rmtree(tmp_path / "checkpoint-30")
    caplog.clear()
    trainer_for(tmp_path, short(20.0), max_steps=STEPS).train(resume_from_checkpoint=True)
    assert "this run allows" in caplog.text


# ---- what is told


def test_the_plan_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_for(tmp_path, short(), max_steps=STEPS)
    assert "nothing is measured yet" in trainer.multirate.describe()
    with caplog.at_level(logging.INFO, "hf_multirate.auto.planner"):
        trainer.train()
    lines = [record.getMessage() for record in caplog.records if "every" in record.getMessage()]
    assert [line.partition(":")[0] for line in lines] == [f"step {step}" for step in (1, 6, 11, 16, 21, 26)]
    plan = trainer.multirate.plans[-1]
    assert f"block_0 every {plan.periods[4]} (drift {plan.drift[4]})" in lines[-1]
    table = trainer.multirate.describe().splitlines()
    assert table[0].split() == ["block", "parameters", "worth", "+-", "work", "period", "drift", "names"]
    cells = table[2].split()
    assert cells[0] == "block_3"
    assert float(cells[2]) == pytest.approx(trainer.multirate._planner.signals.worth(1).mean, rel=1e-2)
    assert cells[5:7] == [str(plan.periods[1]), str(plan.drift[1])]


def test_the_record_the_card_and_the_report_have_the_plan(tmp_path: Path) -> None:
    trainer = trained(tmp_path, short())
    record = read_record(tmp_path)
    assert [plan["start"] for plan in record.plans] == [plan.start for plan in trainer.multirate.plans]
    assert [group["period"] for group in record.groups] == list(trainer.multirate.plans[-1].periods)
    assert MultirateConfig.from_dict(record.config) == trainer.multirate.config
    assert "| head | 1 | - |" in card_section(record)
    assert f"| block_0 | {trainer.multirate.plans[-1].periods[4]} | stand still |" in card_section(record)
    picture = charts({"multirate": record})["plans"][1]
    bars = [patch for patch in picture.axes[0].patches if patch.get_width() > 0]
    blocks = len(trainer.multirate.partition)
    assert len(bars) == len(record.plans) * blocks
    assert max(bar.get_x() + bar.get_width() for bar in bars) == STEPS
    page = report(tmp_path, None, tmp_path / "report").read_text()
    assert "Steps between two gradients of each block" in page


def test_a_config_with_a_budget_survives_json(tmp_path: Path) -> None:
    config = MultirateConfig.auto(1.7, ["embeddings", "."], longest=8, drift=True, idle_mode="train")
    path = tmp_path / "auto.json"
    path.write_text(config.to_json())
    assert MultirateConfig.from_json_file(path) == config
    assert json.loads(config.to_json())["budget"]["speedup"] == 1.7
    assert json.loads(MultirateConfig.auto(np.float32(1.5)).to_json())["budget"]["speedup"] == 1.5


def test_the_command_line(tmp_path: Path) -> None:
    parser = HfArgumentParser(MultirateTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--multirate", "auto"]
    (args,) = parser.parse_args_into_dataclasses([*words, "--multirate_speedup", "1.5"])
    assert args.to_multirate_config() == MultirateConfig.auto(1.5)
    (args,) = parser.parse_args_into_dataclasses(words)
    assert args.to_multirate_config().budget == Budget()


# ---- what cannot be done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"multirate": "auto", "multirate_fast": "head"}, "multirate_fast is given too"),
        ({"multirate": "auto", "multirate_config": "x.json"}, "multirate_config is given too"),
        ({"multirate_speedup": 2.0}, "only 'auto' has a speed-up"),
        ({"multirate": "auto", "multirate_speedup": 0.5}, "speedup must be at least 1, got 0.5"),
        ({"multirate": "automatic"}, r"one of \('on', 'off', 'auto'\)"),
    ],
)
def test_flags_that_contradict_each_other(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultirateTrainingArguments(str(tmp_path), use_cpu=True, **words)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speedup": 0.9}, "at least 1, got 0.9"),
        ({"speedup": float("nan")}, "speedup must be finite, got nan"),
        ({"speedup": float("inf")}, "speedup must be finite, got inf"),
        ({"longest": 12}, "power of two, got 12"),
        ({"longest": 1}, "longest must be at least 2"),
        ({"cycles": 0}, "cycles must be at least 1"),
    ],
)
def test_a_bad_budget(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**values)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"longest must be an integer number of steps, got 4\.0"):
        Budget(longest=4.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"blocks must be a list of regular expressions.*got 'head'"):
        MultirateConfig.auto(1.5, "head")
    for speedup in ("2.0", True, torch.tensor(2.0)):
        with pytest.raises(TypeError, match="speedup must be a number"):
            MultirateConfig.auto(speedup)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="drift of a budget must be True or False, got 2"):
        MultirateConfig.auto(1.5, drift=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget must be a Budget"):
        MultirateConfig((), budget=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rate groups \['still'\] have a period"):
        MultirateConfig((RateGroup("still", ".*", 1, drift_steps=0),), budget=Budget())
    with pytest.raises(ValueError, match=r"rate groups \['slow'\] have a period"):
        MultirateConfig((RateGroup("fast", "head", 1), RateGroup("slow", ".*", 5)), budget=Budget())


def test_a_budget_beyond_the_bound_is_said_and_the_bound_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(tmp_path, short(20.0))
    bound = [record.getMessage() for record in caplog.records if "this run allows" in record.getMessage()]
    assert len(bound) == 1
    assert bound[0].startswith("a speed-up of 20.00 was asked for")
    assert all(plan.periods == (1, 4, 4, 4, 4, 4) for plan in trainer.multirate.plans[1:])


def test_one_block_trains_plainly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = MultirateConfig.auto(2.0, ["."])
    ours, plain = trained(tmp_path, config), trainer_for(tmp_path, None, max_steps=STEPS)
    plain.train()
    assert "one block with trainable parameters, so every step is a full step" in caplog.text
    assert_same(weights(ours), weights(plain))


def test_short_training_has_one_plan_of_what_is_usual(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trained(tmp_path, MultirateConfig.auto(1.5), max_steps=40)
    assert "too short to measure what gradients are worth, which takes 99" in caplog.text
    plans = trainer.multirate.plans
    assert [plan.start for plan in plans] == [0, 1]
    assert plans[1].worth is None
    assert plans[1].periods[1] < plans[1].periods[-2]
    assert trainer.multirate.telemetry.predicted_so_far == pytest.approx(1.5, rel=0.08)


def test_training_shorter_than_the_longest_period_is_planned_too(tmp_path: Path) -> None:
    trainer = trained(tmp_path, MultirateConfig.auto(1.5), max_steps=12)
    assert [plan.start for plan in trainer.multirate.plans] == [0, 1]
    assert trainer.multirate.telemetry.predicted_so_far > 1.3


def test_worth_that_is_all_noise_is_said_and_what_is_usual_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "hf_multirate")
    monkeypatch.setattr(Signals, "given", lambda self, expected: None)
    trainer = trained(tmp_path, short(), max_steps=STEPS)
    assert "at step 6 what gradients are worth is not above its noise" in caplog.text
    planner = trainer.multirate._planner
    told = trainer.multirate.plans[1]
    budget = planner._budget.share * STEPS - 1 - 6  # a full step was taken, six plans begin with one more
    usual = ladder(
        policy_module.expected(6), list(np.diff(planner.account.depths)), planner.account.depths[0],
        budget / (STEPS - 1 - 6), 4,
    )  # fmt: skip
    assert told.worth is None
    assert told.periods == usual


def test_plan_says_that_there_is_nothing_to_plan() -> None:
    model, batch = FAMILIES["bert"]()
    with pytest.raises(ValueError, match="'auto' finds its periods while training"):
        plan(model, batch, {"auto": MultirateConfig.auto()})


def test_layers_that_are_dropped(tmp_path: Path) -> None:
    """A whole block without a gradient at its turn is skipped, unless the user wants an error."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.head = nn.Linear(4, 2)
            self.calls = 0

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            self.calls += 1
            for i, block in enumerate(self.blocks):
                if i != 1 or self.calls % 2:
                    inputs = inputs + block(inputs)
            return {"loss": nn.functional.cross_entropy(self.head(inputs), labels)}

    def run(config: MultirateConfig, calls: int = 0) -> None:
        model = Dropping()
        model.calls = calls
        optimizer = SGD(model.parameters(), lr=0.1)
        with Multirate(config).attach(model, optimizer) as controller:
            run_steps(controller, optimizer, 12, lambda: model(torch.ones(2, 4), torch.tensor([0, 1]))["loss"])

    with pytest.raises(RuntimeError, match="'block_1' got no gradient"):
        run(short(missing_gradients="error"))
    for calls in (0, 1):  # the block is dropped first at the second step, or at the very first one
        run(short(), calls)
