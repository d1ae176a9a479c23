"""First-order decrease of the loss by the last update of each block, for logs and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.optim.learning_rates import LearningRates
from hf_multirate.optim.update_group import UpdateGroup


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
        self._scale: tuple[Step, float] | None = None

    def track(
        self, group: UpdateGroup, stepped: Sequence[nn.Parameter], step: Step, *, counts: bool
    ) -> Mapping[Tensor, float]:
        """Compute the inner products of fresh gradients with last updates.

        Args:
            group: The group of the parameters.
            stepped: Parameters of the group with a gradient.
            step: The present step.
            counts: Whether the products are added to the averages.

        Returns:
            Parameter -> inner product, at a learning rate of 1.
        """
        if self._scale is None or self._scale[0] != step:
            self._scale = step, self._gradient_scale()
        settings = self._optimizer.param_groups[group.place]
        products = group.gradient_update_products(stepped, settings, self._scale[1])
        if (
            counts and settings.get("lr") is not None
        ):  # an optimizer without a learning rate chooses its own step sizes
            rate = self._rates.rate(group.place)
            age = self._schedule.steps_since_refresh(group.index, step.index - 1) + 1
            self.averages.add({self._names[p]: -rate * product for p, product in products.items()}, age)
        return products

    def _gradient_scale(self) -> float:
        """Factor on the gradients, which a gradient scaler leaves to fused optimizers to remove."""
        scale = vars(self._optimizer).get("grad_scale")
        return 1.0 if scale is None else float(scale)


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
        sums: dict[str, float] = defaultdict(float)
        ages: dict[str, int] = {}
        for name, value in self._sums.items():
            sums[blocks[name]] += value / self._counts[name]
            ages[blocks[name]] = max(self._ages[name], ages.get(blocks[name], 0))
        self._sums.clear()
        self._counts.clear()
        return {block: BlockLossDecrease(value, ages[block]) for block, value in sums.items()}
