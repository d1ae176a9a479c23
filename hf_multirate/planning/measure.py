"""Measurement of steps: FLOPs from torch's counter, bytes of stored activations, and seconds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Schedule
from hf_multirate.controller.multirate import Multirate
from hf_multirate.model.random_state import random_state_restored
from hf_multirate.optim.parameter_groups import divide_parameter_groups


WEIGHT_PRODUCTS = ("mm", "addmm", "convolution")
"""Products with a weight; the gradient of the weight costs as many FLOPs again."""


@dataclass(frozen=True)
class StepCost:
    """Cost of one step on a whole batch.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        weight_products: FLOPs of products with weights in the forward pass, by module name, without submodules.
        activations: Bytes of activations stored for backward.
    """

    forward: float
    backward: float
    weight_products: Mapping[str, float]
    activations: float

    @property
    def total(self) -> float:
        """FLOPs of forward and backward."""
        return self.forward + self.backward


def count_step(model: nn.Module, rows: Any, factor: float) -> StepCost:
    """Count the cost of a step by running forward and backward; gradients are removed afterwards.

    Args:
        model: Model that returns a ``loss``, in the state of the step to count.
        rows: Inputs of some rows of the batch, by name.
        factor: Factor from these rows to the whole batch.

    Raises:
        ValueError: the model returns no loss.
    """
    saved_bytes: dict[int, int] = {}
    model_storages = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def add_saved(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in model_storages:
            saved_bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    random_state = random_state_restored(model.parameters())
    with random_state, torch.autograd.graph.saved_tensors_hooks(add_saved, lambda tensor: tensor):
        with FlopCounterMode(display=False) as forward:
            loss = loss_of(model, rows)
        activations = sum(saved_bytes.values())
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward(loss)
    for parameter in model.parameters():
        parameter.grad = None
    products = _weight_products(forward.get_flop_counts(), type(model).__name__)
    return StepCost(
        factor * forward.get_total_flops(),
        factor * backward.get_total_flops(),
        {name: factor * flops for name, flops in products.items()},
        factor * activations,
    )


def loss_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Loss of ``model`` for ``batch``.

    Raises:
        ValueError: the model returns no loss, or a loss with more than one element.
    """
    return loss_in(model(**batch), type(model).__name__, batch)


def loss_in(output: Any, name: str, batch: Mapping[str, Any]) -> Tensor:
    """Loss in the ``output`` of a model of class ``name`` for ``batch``, see `loss_of`."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple):  # e.g. of a model with return_dict=False
        loss = output[0] if output else None
    else:
        try:
            loss = output.loss
        except AttributeError:
            loss = None
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        raise ValueError(f"{name} returns no loss for a batch of {sorted(batch)}: add labels to the batch.")
    if loss.numel() != 1:
        raise ValueError(f"{name} returns a loss of shape {tuple(loss.shape)}: return one number, such as its mean.")
    return loss


def _weight_products(counts: Mapping[str, Mapping[Any, int]], root: str) -> dict[str, float]:
    """FLOPs of products with weights by module, without those of its submodules."""
    totals = {
        name.removeprefix(root).removeprefix("."): sum(
            flops for operation, flops in operations.items() if str(operation).split(".")[-1] in WEIGHT_PRODUCTS
        )
        for name, operations in counts.items()
        if name != "Global"
    }
    products = {name: float(total) for name, total in totals.items()}
    for name, total in totals.items():
        parent = name.rpartition(".")[0]
        while name and parent not in totals:
            parent = parent.rpartition(".")[0]
        if name:
            products[parent] -= total
    return products


ROUNDS = 5
"""Number of timed rounds of each kind of step, after one warm-up round."""


def seconds_of(
    model: nn.Module, batch: Mapping[str, Any], config: MultirateConfig, schedule: Schedule, *, kept: bool = False
) -> dict[Live, float]:
    """Median seconds of each kind of step of ``schedule``, which is that of ``config`` for this model.

    Kinds alternate, so that changes of the machine's speed affect all of them. The optimizer is AdamW at learning rate
    zero, which leaves the parameters unchanged.

    Args:
        model: Model that returns a ``loss``.
        batch: The batch, the same at each step.
        config: The configuration.
        schedule: Its schedule for this model.
        kept: Whether the activation cache, in memory, has the rows of the batch. If not, there is no cache.

    Returns:
        Live groups -> seconds. The empty tuple stands for a step of standard training.
    """
    cache = "memory" if kept else None
    config = replace(config, activation_cache=cache, activation_cache_dir=None, head_start=0, train_time=None)
    kinds = kinds_of(schedule)
    times: dict[Live, list[float]] = defaultdict(list)
    with random_state_restored(model.parameters()):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        divide_parameter_groups(optimizer, model, config)
        for turn in range(ROUNDS + 1):
            seconds: dict[Live, float] = {(): _time_step(model, batch, optimizer)}
            with Multirate(config).attach(model, optimizer) as controller:
                steps = count()
                for live in kinds:
                    # In training, most steps follow a step of the same kind. A cache keeps the rows at the first.
                    for _ in range(2):
                        controller.begin_step(next(step for step in steps if schedule.live(step) == live))
                        seconds[live] = _time_step(model, batch, optimizer)
            for live, value in seconds.items():
                if turn:
                    times[live].append(value)
    return {live: median(values) for live, values in times.items()}


def _time_step(model: nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    torch.autograd.backward(loss_of(model, batch))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if next(model.parameters()).device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


Live = tuple[int, ...]
"""Indices of the live groups."""

MAX_KINDS = 128
"""Maximum number of kinds of steps. Each kind is run, so planning would take too long with more."""


def kinds_of(schedule: Schedule) -> dict[Live, int]:
    """Kinds of steps: live groups -> number of such steps in a cycle; the full step first.

    >>> kinds_of(Schedule((1, 2, 3)))
    {(0, 1, 2): 1, (0, 2): 1, (0, 1): 2, (0,): 2}

    Raises:
        ValueError: there are more than `MAX_KINDS` kinds.
    """
    if len(schedule.kinds) > MAX_KINDS:
        raise ValueError(
            f"the periods {sorted(set(schedule.periods))} make more than {MAX_KINDS} kinds of steps: give fewer "
            "periods, or make each a multiple of the previous one."
        )
    return schedule.kinds
