"""Tell what gradients are worth to those who ask: the table of blocks in the logs, and automatic training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.auto.estimates import Signals
from hf_multirate.config.schedule import Schedule, Stages
from hf_multirate.optim.update_group import UpdateGroup


class LossDecreaseTracker:
    """Fresh gradients held against the last updates of live groups, where somebody wants to know.

    The looks at one step go from `begin` over `track` of each live bucket to `send`.

    Args:
        optimizer: Whose gradients, learning rates and updates they are.
        names: Name of each parameter.
        signals: Take in what gradients are worth, for whoever decides on periods; None if nobody does.
        of_drift: Whether the decision is on drift too.
    """

    def __init__(
        self, optimizer: Optimizer, names: Mapping[Tensor, str], signals: Signals | None, *, of_drift: bool
    ) -> None:
        self.worth = LossDecreaseAverages()
        self._optimizer = optimizer
        self._names = names
        self._signals = signals
        self._of_drift = of_drift
        self._pending: dict[int, float] = {}
        self._scale: float | None = None
        self._schedule: Schedule | Stages = Schedule((1,), 0)
        self._step = 0
        self._counts = self._tells = False

    @property
    def asked(self) -> bool:
        """Whether anybody decides on periods."""
        return self._signals is not None

    def begin(self, schedule: Schedule | Stages, step: int, *, counts: bool) -> None:
        """Turn to ``step``, whose gradients are there; ``counts`` if it has a place in the table of blocks."""
        self._pending, self._scale = {}, None
        self._schedule, self._step, self._counts = schedule, step, counts
        self._tells = self.asked and step > 0 and len(schedule.live(step)) > 1 and schedule.samples(step)

    def track(self, bucket: UpdateGroup, stepped: Sequence[nn.Parameter], *, wanted: bool) -> Mapping[Tensor, float]:
        """Inner products of the gradients of ``stepped`` with their last updates, by parameter.

        It is empty unless somebody asks, or they are ``wanted`` for something else.
        """
        tells = self._tells and (self._of_drift or bucket.index in self._schedule.live(self._step - 1))
        if not (wanted or self._counts or tells):
            return {}
        self._scale = self._gradient_scale() if self._scale is None else self._scale
        slopes = bucket.gradient_update_products(
            stepped, self._optimizer.param_groups[bucket.torch_group], self._scale
        )
        if self._counts:
            self._count(bucket, slopes)
        if tells and slopes:
            self._note(bucket, slopes)
        return slopes

    def send(self) -> None:
        """Pass on what the step told plans; not called for one that was skipped."""
        if self._signals is None or not all(map(math.isfinite, self._pending.values())):
            return
        for index, value in self._pending.items():
            self._signals.add(index, self._age(index), value)
        self._pending = {}

    def _gradient_scale(self) -> float:
        """What gradients are still multiplied with: a gradient scaler leaves it to an optimizer that is fused."""
        scale = vars(self._optimizer).get("grad_scale")
        return 1.0 if scale is None else float(scale)

    def _count(self, bucket: UpdateGroup, slopes: Mapping[Tensor, float]) -> None:
        rate = self._optimizer.param_groups[bucket.torch_group].get("lr")
        if rate is None:  # the optimizer finds its own step sizes
            return
        rate = float(rate) * bucket.rate_group.lr_scale
        self.worth.add({self._names[p]: -rate * slope for p, slope in slopes.items()}, self._age(bucket.index))

    def _note(self, bucket: UpdateGroup, slopes: Mapping[Tensor, float]) -> None:
        """Worth of a bucket at a learning rate of 1 for the group of the optimizer with the highest."""
        rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        if max(rates) > 0:
            share = rates[bucket.torch_group] * bucket.rate_group.lr_scale / max(rates)
            before = self._pending.get(bucket.index, 0.0)
            self._pending[bucket.index] = before - share * sum(slopes.values())

    def _age(self, index: int) -> int:
        """Steps from the last gradient of a group before this one to it."""
        return self._schedule.steps_since_refresh(index, self._step - 1) + 1


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
