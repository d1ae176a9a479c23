"""Track the first-order decrease of the loss by the last update of each block, for logs and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.optim.update_group import UpdateGroup


class LossDecreaseTracker:
    """Inner products of gradients with last updates.

    Args:
        optimizer: The optimizer of the gradients, learning rates and updates.
        names: Name of each parameter.
        schedule: Steps at which groups get a gradient.
    """

    def __init__(self, optimizer: Optimizer, names: Mapping[Tensor, str], schedule: Schedule) -> None:
        self.averages = LossDecreaseAverages()
        self._optimizer = optimizer
        self._names = names
        self._schedule = schedule
        self._scale: tuple[Step, float] | None = None

    def track(
        self, group: UpdateGroup, stepped: Sequence[nn.Parameter], step: Step, *, counts: bool
    ) -> Mapping[Tensor, float]:
        """Inner products of the gradients of ``stepped`` with their last updates, by parameter.

        The averages take them if ``step`` counts.
        """
        if self._scale is None or self._scale[0] != step:
            self._scale = step, self._gradient_scale()
        settings = self._optimizer.param_groups[group.place]
        products = group.gradient_update_products(stepped, settings, self._scale[1])
        rate = settings.get("lr")
        if counts and rate is not None:  # without a rate the optimizer chooses its own step sizes
            rate = float(rate) * group.rate_group.lr_scale
            age = self._schedule.steps_since_refresh(group.index, step.index - 1) + 1
            self.averages.add({self._names[p]: -rate * product for p, product in products.items()}, age)
        return products

    def _gradient_scale(self) -> float:
        """Factor on the gradients: a gradient scaler leaves it to an optimizer that is fused."""
        scale = vars(self._optimizer).get("grad_scale")
        return 1.0 if scale is None else float(scale)


@dataclass(frozen=True)
class BlockLossDecrease:
    """Of one block: the decrease of the loss, and the steps since the update that brings it."""

    decrease: float
    age: int


class LossDecreaseAverages:
    """Sums over parameters, means over full steps, since they were last taken.

    The decrease is of first order: minus the inner product of the fresh gradient, as the optimizer gets it, with the
    last update at the present learning rate. For a group that drifts it is what another step of drift in full length
    would bring; below zero it would do harm. Of parameters with more than some 33,000 elements it is an estimate.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._ages: dict[str, int] = {}

    def add(self, decreases: Mapping[str, float], age: int) -> None:
        """Parameter name -> decrease, for updates that are ``age`` steps old."""
        for name, value in decreases.items():
            if not math.isfinite(value):
                continue  # a step that a gradient scaler is about to skip
            self._sums[name] += value
            self._counts[name] += 1
            self._ages[name] = age

    def take(self, blocks: Mapping[str, str]) -> dict[str, BlockLossDecrease]:
        """By block, from parameter name -> block; nothing is left behind."""
        sums: dict[str, float] = defaultdict(float)
        ages: dict[str, int] = {}
        for name, value in self._sums.items():
            sums[blocks[name]] += value / self._counts[name]
            ages[blocks[name]] = max(self._ages[name], ages.get(blocks[name], 0))
        self._sums.clear()
        self._counts.clear()
        return {block: BlockLossDecrease(value, ages[block]) for block, value in sums.items()}
