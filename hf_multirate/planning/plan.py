"""What settings would save, without training: counted work, and measured seconds on request."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import nn

from hf_multirate.backward.gradient_checkpointing import checkpointing_modules
from hf_multirate.backward.idle_forward import InactiveForward, frozen_buffers
from hf_multirate.backward.partial_backward import PartialBackward
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Step
from hf_multirate.config.validation import require_bool
from hf_multirate.controller.multirate import Multirate
from hf_multirate.model.cost_model import boundary, layers_of, step_cost
from hf_multirate.planning.inputs import first_rows, require_arguments, try_out
from hf_multirate.planning.measure import Count, Live, count, kinds_of, seconds_of
from hf_multirate.planning.results import GroupPlan, Plan, StepPlan


def plan(
    model: nn.Module, batch: Mapping[str, Any], configs: Mapping[str, MultirateConfig], *, measure: bool = False
) -> list[Plan]:
    """What each of ``configs`` would save.

    Two rows of the batch run forward and backward for each kind of step. Model and batch are as before afterwards;
    ``measure`` also takes steps of AdamW at learning rate zero. Automatic periods are those that training would choose
    for this model.

    Args:
        model: The model, in the mode and with the ``requires_grad`` of training.
        batch: A batch of the size of training, by names of inputs, with labels.
        configs: Label -> configuration.
        measure: Whether to time the steps on this machine, with the whole batch.

    Raises:
        ValueError: a configuration does not fit the model, or the batch does not.
        TypeError: an argument has another type.
    """
    require_arguments(model, batch, configs)
    require_bool("measure", measure)
    device = next(model.parameters()).device
    batch = recursively_apply(lambda tensor: tensor.to(device), dict(batch))
    with _as_found(model), torch.enable_grad():
        try_out(model, batch)
        return [_plan(model, batch, label, config, measure=measure) for label, config in configs.items()]


def _plan(model: nn.Module, batch: Mapping[str, Any], label: str, config: MultirateConfig, *, measure: bool) -> Plan:
    with _warnings() as messages:
        multirate = Multirate(config).assign(model)
        config, partition = multirate.settled, multirate.partition
        groups = partition.parameters(model)
        counts = _counts(model, batch, config, groups)
    kinds = kinds_of(config.schedule)
    times = seconds_of(model, batch, config) if measure else {}
    steps = tuple(_step(config, model, groups, live, counts[live], times.get(live)) for live in kinds)
    full = counts[_everything(config)].total
    if not full:
        raise ValueError(
            f"a step of {type(model).__name__} has no matrix product or convolution, so there is no work to count."
        )
    cycle = sum(kinds.values())
    mean = sum(number * counts[live].total for live, number in kinds.items()) / cycle
    standard = times.get(())
    mean_time = sum(number * times[live] for live, number in kinds.items()) / cycle if standard else None
    least = min(kinds, key=len)
    return Plan(
        label,
        _groups(config, groups, counts),
        steps,
        full / mean,
        full / counts[least].total,
        tuple(dict.fromkeys([*blockers(model, config, partition), *messages])),
        standard / mean_time if standard and mean_time else None,
        standard / times[least] if standard else None,
    )


def _everything(config: MultirateConfig) -> Live:
    """The groups that are live at a full step."""
    return tuple(range(len(config.groups)))


def _prefixes(config: MultirateConfig) -> list[Live]:
    """Groups by period, one more each time."""
    order = sorted(range(len(config.groups)), key=lambda i: config.groups[i].gradient_period)
    return [tuple(sorted(order[: i + 1])) for i in range(len(order))]


def _counts(
    model: nn.Module,
    batch: Mapping[str, Any],
    config: MultirateConfig,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
) -> dict[Live, Count]:
    """Work of each kind of step, and of steps with one group more after the other."""
    inactive = InactiveForward(config, torch.optim.AdamW, compiled=False, sharded=False)
    backward = PartialBackward(model, groups, inactive)
    part, times = first_rows(batch)
    found = {}
    for live in {*kinds_of(config.schedule), *_prefixes(config)}:
        with backward.micro_batch(Step(0, live, len(live) == len(config.groups))):
            found[live] = count(model, part, times)
    return found


def _groups(
    config: MultirateConfig,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    counts: Mapping[Live, Count],
) -> tuple[GroupPlan, ...]:
    weighted = counts[_everything(config)].weighted
    owner = {key.rpartition(".")[0]: name for name, members in groups.items() for key in members}
    found: dict[int, GroupPlan] = {}
    before = 0.0
    for live in _prefixes(config):
        (i,) = set(live) - set(found)
        group = config.groups[i]
        own = sum(flops for module, flops in weighted.items() if owner.get(module) == group.name)
        added, before = counts[live].backward - before, counts[live].backward
        size = sum(parameter.numel() for parameter in groups[group.name].values())
        found[i] = GroupPlan(group.name, group.gradient_period, size, own, max(0.0, added - own), min(own, added))
    return tuple(found[i] for i in sorted(found))


def _step(
    config: MultirateConfig,
    model: nn.Module,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    live: Live,
    work: Count,
    seconds: float | None,
) -> StepPlan:
    names = tuple(config.groups[i].name for i in live)
    sizes = {name: sum(p.numel() * p.element_size() for p in members.values()) for name, members in groups.items()}
    gradients = sum(sizes[name] for name in names)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    keys = {key for name in names for key in groups[name]}
    edge = boundary(layers_of(model), keys) if len(live) < len(config.groups) else None
    memory = weights + gradients + 2 * sum(sizes.values()) + work.kept
    return StepPlan(names, kinds_of(config.schedule)[live], work.total, edge, memory, gradients, seconds)


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Give gradients and buffers their values back."""
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        with frozen_buffers([model]):
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the package warns of meanwhile, which then is not logged."""
    messages: list[str] = []
    logger = logging.getLogger("hf_multirate")

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, propagates = Collect(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


NEARLY_ALL = 0.7
"""Share of a full step's work beyond which a fast-only step saves little."""


def blockers(model: nn.Module, config: MultirateConfig, partition: Mapping[str, Sequence[str]]) -> list[str]:
    """Reasons that can be seen without running anything."""
    if config.schedule.cycle == 1:
        return ["every step is a full step"]
    found = []
    fast = {key for group in config.groups if group.gradient_period == 1 for key in partition[group.name]}
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    low = sorted(fast & embeddings)
    if low:
        found.append(f"the embedding {low[0]!r} is in the fast group: backward goes to the bottom at every step")
    layers = layers_of(model)
    everything = {key for keys in partition.values() for key in keys}
    share = step_cost(layers, fast) / (step_cost(layers, everything) or 1.0)
    lowest = boundary(layers, fast)
    if not low and share > NEARLY_ALL:
        what = "adapter" if "lora_" in f"{lowest}" else "fast parameter"
        found.append(
            f"a fast-only step costs {share:.2f} of a full one: the lowest {what} is {lowest!r}. Name fewer blocks, "
            "as in 'last:1'"
        )
    if any(vars(module).get("gradient_checkpointing") for module in checkpointing_modules(model)):
        found.append("activation checkpointing runs the forward pass of full steps twice; fast-only steps do not")
    return found
