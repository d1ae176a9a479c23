"""Plans: predicted speed-up of configurations from counted FLOPs, and from measured seconds on request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import nn

from hf_multirate.backward.frozen_forward import FrozenForward
from hf_multirate.backward.idle_forward import InactiveForward, frozen_buffers
from hf_multirate.backward.partial_backward import PartialBackward, requires_grad_off
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import NEVER
from hf_multirate.config.schedule import Step
from hf_multirate.config.validation import require_bool
from hf_multirate.controller.multirate import Multirate
from hf_multirate.model.cost_model import boundary, layers_of
from hf_multirate.model.partition import Partition
from hf_multirate.model.stages import settle_stages, shares_of, speedup_of_stages
from hf_multirate.model.unwrap import canonical_parameters
from hf_multirate.planning.blockers import blockers, collected_warnings
from hf_multirate.planning.inputs import check_batch, first_rows, require_arguments
from hf_multirate.planning.kept_rows import prefix_flops
from hf_multirate.planning.measure import Live, StepCost, count_step, kinds_of, seconds_of
from hf_multirate.planning.results import GroupPlan, Plan, StagePlan, StepPlan


def plan(
    model: nn.Module, batch: Mapping[str, Any], configs: Mapping[str, MultirateConfig], *, measure: bool = False
) -> list[Plan]:
    """Predict the speed-up of each of ``configs``.

    Forward and backward run on two rows of the batch for each kind of step. ``measure`` also takes steps of AdamW at
    learning rate zero. Model and batch are unchanged afterwards. Automatic periods are those of training.

    Args:
        model: The model, with the mode (``train()``) and ``requires_grad`` flags of training.
        batch: Batch with as many rows as in training: input names -> tensors, including labels.
        configs: Configurations by label.
        measure: Whether to time the steps on this machine, with the whole batch.

    Returns:
        One plan per configuration, in the same order.

    Raises:
        ValueError: a configuration or the batch does not fit the model.
        TypeError: an argument has the wrong type.
    """
    require_arguments(model, batch, configs)
    require_bool("measure", measure)
    device = next(model.parameters()).device
    batch = recursively_apply(lambda tensor: tensor.to(device), dict(batch))
    with _restored(model), torch.enable_grad():
        check_batch(model, batch)
        return [
            (_plan_stages if config.stage_list else _plan)(model, batch, label, config, measure=measure)
            for label, config in configs.items()
        ]


def _plan_stages(
    model: nn.Module, batch: Mapping[str, Any], label: str, config: MultirateConfig, *, measure: bool
) -> Plan:
    stages = settle_stages(config, model)
    plans = [
        _plan(model, batch, f"{label}, stage {number}", stage.given, measure=measure)
        for number, stage in enumerate(stages, 1)
    ]
    measured = [plan.speedup_measured for plan in plans if plan.speedup_measured]
    bounds = [plan.bound_measured for plan in plans if plan.bound_measured]
    kept = any(plan.speedup_kept for plan in plans)
    kept_measured = [value for plan in plans if (value := plan.speedup_kept_measured or plan.speedup_measured)]
    return Plan(
        label,
        groups=(),
        steps=(),
        speedup=speedup_of_stages(stages, [plan.speedup for plan in plans]),
        bound=speedup_of_stages(stages, [plan.bound for plan in plans]),
        blockers=tuple(f"stage {i}: {text}" for i, plan in enumerate(plans, 1) for text in plan.blockers),
        speedup_measured=speedup_of_stages(stages, measured) if len(measured) == len(plans) else None,
        bound_measured=speedup_of_stages(stages, bounds) if len(bounds) == len(plans) else None,
        cycle=max(plan.cycle for plan in plans),
        stages=tuple(StagePlan(share, plan) for share, plan in zip(shares_of(stages), plans, strict=True)),
        speedup_kept=speedup_of_stages(stages, [plan.speedup_kept or plan.speedup for plan in plans])
        if kept
        else None,
        speedup_kept_measured=speedup_of_stages(stages, kept_measured) if kept and kept_measured else None,
    )


def _plan(model: nn.Module, batch: Mapping[str, Any], label: str, config: MultirateConfig, *, measure: bool) -> Plan:
    with collected_warnings() as messages:
        multirate = Multirate(config).assign(model)
        given, config, partition = config, multirate.settled, multirate.partition
        groups = partition.parameters(model)
        standard, counts = _counts(model, batch, config, partition)
    kinds = kinds_of(config.schedule)
    times = seconds_of(model, batch, given if partition.never else config, config.schedule) if measure else {}
    steps = tuple(_step(config, model, partition, live, counts[live], times.get(live)) for live in kinds)
    full = standard.total
    if not full:
        raise ValueError(
            f"a step of {type(model).__name__} has no matrix product or convolution, so there is no work to count: "
            "give a model with linear or convolutional layers."
        )
    mean = _mean(kinds, {live: cost.total for live, cost in counts.items()})
    cheapest = min(kinds, key=len)
    kept = full / (mean - prefix_flops(model, batch, partition)) if given.activation_cache else None
    kept_times = seconds_of(model, batch, given, config.schedule, kept=True) if measure and kept else {}
    return Plan(
        label,
        (*_groups(config, groups, counts), *_never_groups(model, partition, standard, counts[_all_groups(config)])),
        steps,
        full / mean,
        full / counts[cheapest].total,
        tuple(dict.fromkeys([*blockers(model, config, partition), *messages])),
        times[()] / _mean(kinds, times) if times else None,
        times[()] / times[cheapest] if times else None,
        config.schedule.cycle,
        speedup_kept=kept,
        speedup_kept_measured=kept_times[()] / _mean(kinds, kept_times) if kept_times else None,
    )


def _mean(kinds: Mapping[Live, int], costs: Mapping[Live, float]) -> float:
    """Mean cost of the steps of a cycle."""
    return sum(number * costs[live] for live, number in kinds.items()) / sum(kinds.values())


def _all_groups(config: MultirateConfig) -> Live:
    """Live groups of a full step."""
    return tuple(range(len(config.groups)))


def _prefixes(config: MultirateConfig) -> list[Live]:
    """The fastest group, the two fastest groups, and so on up to all groups."""
    order = sorted(range(len(config.groups)), key=lambda i: config.groups[i].gradient_period)
    return [tuple(sorted(order[: i + 1])) for i in range(len(order))]


def _counts(
    model: nn.Module,
    batch: Mapping[str, Any],
    config: MultirateConfig,
    partition: Partition,
) -> tuple[StepCost, dict[Live, StepCost]]:
    """Cost of a step of standard training, and of each kind of step and of steps with the groups of `_prefixes`."""
    groups, parameters = partition.parameters(model), canonical_parameters(model)
    never = {name: parameters[name] for name in partition.never_names}
    inactive = InactiveForward(config, torch.optim.AdamW, compiled=False, sharded=False)
    rows, factor = first_rows(batch)
    standard = count_step(model, rows, factor) if never else None
    costs = {}
    with requires_grad_off(list(never.values())):
        backward = PartialBackward(model, groups, inactive)
        frozen = FrozenForward(model, never, groups, inactive)
        for live in {*kinds_of(config.schedule), *_prefixes(config)}:
            full = len(live) == len(config.groups)
            step = Step(0, live, full, complete=full)
            with frozen.micro_batch(step) if never else nullcontext(), backward.micro_batch(step):
                costs[live] = count_step(model, rows, factor)
    return standard or costs[_all_groups(config)], costs


def _groups(
    config: MultirateConfig,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    counts: Mapping[Live, StepCost],
) -> tuple[GroupPlan, ...]:
    weight_products = counts[_all_groups(config)].weight_products
    owner = {key.rpartition(".")[0]: name for name, members in groups.items() for key in members}
    plans: dict[int, GroupPlan] = {}
    previous = 0.0
    for live in _prefixes(config):
        (i,) = set(live) - set(plans)
        group = config.groups[i]
        forward = sum(flops for module, flops in weight_products.items() if owner.get(module) == group.name)
        added, previous = counts[live].backward - previous, counts[live].backward
        size = sum(parameter.numel() for parameter in groups[group.name].values())
        activations, weights = max(0.0, added - forward), min(forward, added)
        plans[i] = GroupPlan(group.name, group.gradient_period, size, forward, activations, weights)
    return tuple(plans[i] for i in sorted(plans))


def _never_groups(model: nn.Module, partition: Partition, standard: StepCost, full: StepCost) -> tuple[GroupPlan, ...]:
    """Plans of the groups that never get a gradient; standard training spends the difference to a full step on them.

    The activation gradients of several such groups are divided by their work in the forward pass.
    """
    parameters = canonical_parameters(model)
    forward = {
        group: sum(flops for module, flops in standard.weight_products.items() if module in _modules(names))
        for group, names in partition.never.items()
    }
    total = sum(forward.values())
    added = standard.backward - full.backward
    plans = []
    for group, names in partition.never.items():
        size = sum(parameters[name].numel() for name in names)
        share = added * (forward[group] / total if total else 1 / len(forward))
        weights = min(forward[group], share)
        plans.append(GroupPlan(group, NEVER, size, forward[group], max(0.0, share - weights), weights))
    return tuple(plans)


def _modules(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _step(
    config: MultirateConfig,
    model: nn.Module,
    partition: Partition,
    live: Live,
    cost: StepCost,
    seconds: float | None,
) -> StepPlan:
    groups = partition.parameters(model)
    names = tuple(config.groups[i].name for i in live)
    sizes = {name: sum(p.numel() * p.element_size() for p in members.values()) for name, members in groups.items()}
    gradients = sum(sizes[name] for name in names)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    keys = {key for name in names for key in groups[name]}
    partial = len(live) < len(config.groups) or partition.never
    edge = boundary(layers_of(model), keys) if partial else None
    memory = weights + gradients + 2 * sum(sizes.values()) + cost.activations
    return StepPlan(names, kinds_of(config.schedule)[live], cost.total, edge, memory, gradients, seconds)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Context manager that restores gradients and buffers."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        with frozen_buffers([model]):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
