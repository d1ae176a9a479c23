"""First-order decrease of the loss by the last update of each block, for logs and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.optim.learning_rates import LearningRates
from hf_multirate.optim.on_host import is_on_host
from hf_multirate.optim.update_group import InnerProducts, UpdateGroup


class LossDecreaseTracker:
    """Tracks the inner products of gradients with last updates.

    Args:
        optimizer: The optimizer, for last updates.
        names: Parameter -> name.
        schedule: The steps at which each group gets a gradient.
        rates: Learning rates of the parameter groups of the optimizer.
    """

    def __init__(
        self, optimizer: Optimizer, names: Mapping[Tensor, str], schedule: Schedule, rates: LearningRates
    ) -> None:
        self.averages = LossDecreaseAverages()
        self._optimizer = optimizer
        self._names = names
        self._schedule = schedule
        self._rates = rates

    def track(
        self, group: UpdateGroup, stepped: Sequence[nn.Parameter], step: Step, *, counts: bool
    ) -> InnerProducts | None:
        """Compute the inner products of fresh gradients with last updates. The host does not wait for them.

        Args:
            group: The group of the parameters.
            stepped: Parameters of the group with a gradient.
            step: The present step.
            counts: Whether the products are added to the averages.

        Returns:
            The inner products at a learning rate of 1; None if there is no last update.
        """
        settings = self._optimizer.param_groups[group.place]
        products = group.gradient_update_products(stepped, settings, self._gradient_scale())
        # An optimizer without a learning rate chooses its own step sizes.
        if counts and products is not None and settings.get("lr") is not None:
            rate = self._rates.rate(group.place)
            age = self._schedule.steps_since_refresh(group.index, step.index - 1) + 1
            self.averages.add_later([self._names[p] for p in products.parameters], products, rate, age)
        return products

    def _gradient_scale(self) -> float | Tensor:
        """Factor on the gradients, which a gradient scaler leaves to fused optimizers to remove."""
        scale: Tensor | None = vars(self._optimizer).get("grad_scale")
        return 1.0 if scale is None else scale.clone()  # the scaler changes its tensor in place


@dataclass(frozen=True)
class _Unread:
    """Decreases on the device: names of the parameters, products, learning rate, and age of the last updates."""

    names: Sequence[str]
    products: InnerProducts
    rate: float
    age: int


MAX_UNREAD = 256
"""Largest number of entries that wait on the device, if no log reads them."""


@dataclass(frozen=True)
class BlockLossDecrease:
    """The decrease of the loss by the last update of a block, and the age of that update in steps."""

    decrease: float
    age: int


class LossDecreaseAverages:
    """Loss decrease per block: sums over parameters, means over the full steps since the last `take`.

    The first-order decrease is minus the inner product of the fresh gradient with the last update. The gradient is the
    one that the optimizer gets, the learning rate the present one. For a group that drifts, it predicts the effect of
    one more drift step with factor 1: a negative value means that the loss would increase. For parameters with more
    than 32,768 elements it is an estimate.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._ages: dict[str, int] = {}
        self._unread: list[_Unread] = []

    def add_later(self, names: Sequence[str], products: InnerProducts, rate: float, age: int) -> None:
        """Add decreases of updates that are ``age`` steps old, which `take` reads from a device.

        Args:
            names: Names of the parameters of ``products``.
            products: Inner products of gradients with the updates, at a learning rate of 1.
            rate: The learning rate.
            age: Age of the updates in steps.
        """
        self._unread.append(_Unread(names, products, rate, age))
        if len(self._unread) > MAX_UNREAD or is_on_host(products.sums):
            self._read()

    def _read(self) -> None:
        """Add the entries that wait on the device, which costs one wait for each device."""
        unread, self._unread = self._unread, []
        for device in {entry.products.sums.device for entry in unread}:
            here = [entry for entry in unread if entry.products.sums.device == device]
            values = iter(torch.cat([entry.products.sums for entry in here]).tolist())
            for entry in here:
                products = entry.products.of(list(islice(values, len(entry.names)))).values()
                decreases = (-entry.rate * product for product in products)
                self.add(dict(zip(entry.names, decreases, strict=True)), entry.age)

    def add(self, decreases: Mapping[str, float], age: int) -> None:
        """Add decreases (parameter name -> decrease) of updates that are ``age`` steps old."""
        for name, value in decreases.items():
            if not math.isfinite(value):
                continue  # a gradient scaler will skip this step
            self._sums[name] += value
            self._counts[name] += 1
            self._ages[name] = age

    def take(self, blocks: Mapping[str, str]) -> dict[str, BlockLossDecrease]:
        """Return the averages by block and reset them; ``blocks`` is parameter name -> block."""
        self._read()
        sums: dict[str, float] = defaultdict(float)
        ages: dict[str, int] = {}
        for name, value in self._sums.items():
            sums[blocks[name]] += value / self._counts[name]
            ages[blocks[name]] = max(self._ages[name], ages.get(blocks[name], 0))
        self._sums.clear()
        self._counts.clear()
        return {block: BlockLossDecrease(value, ages[block]) for block, value in sums.items()}
