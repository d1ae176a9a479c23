"""How an idle parameter moves: along the last update that its optimizer made.

For SGD with momentum this is the linear drift of Algorithm 1 of Vlaar & Leimkuhler, *Multirate
Training of Neural Networks* (ICML 2022): the parameter follows its frozen momentum. For Adam and
AdamW it follows the frozen ratio of the two moments. Both directions are read from the optimizer's
state. Any other optimizer repeats the displacement of its last step, which costs one buffer the
size of the parameter. No rule changes the optimizer's state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer


class DriftRule(Protocol):
    """Moves idle parameters of one torch parameter group."""

    needs_snapshot: bool
    """Whether `keep` has to be called around every step that gives the parameters a gradient."""

    def drift(self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, damping: float) -> None:
        """Move ``parameters`` by ``damping`` times their last update.

        The learning rate is ``scale`` times the one that ``group`` has now.
        """

    def keep(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """Take note of a step that moved ``parameters`` from the values ``before``."""


class SGDDrift:
    """Along the momentum buffer p: theta <- theta - h p (Algorithm 1, last line).

    Coupled weight decay is part of p and frozen with it. Nesterov's look-ahead is a correction to a
    fresh gradient, so it has no part in a drift.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def drift(self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, damping: float) -> None:
        """See `DriftRule`. A parameter without a momentum buffer has had no gradient, and stays."""
        pairs = [(p, self._optimizer.state.get(p, {}).get("momentum_buffer")) for p in parameters]
        moved = [(p, buffer) for p, buffer in pairs if buffer is not None]
        if moved:
            sign = 1.0 if group["maximize"] else -1.0
            targets, buffers = zip(*moved, strict=True)
            torch._foreach_add_(targets, buffers, alpha=sign * float(group["lr"]) * scale * damping)

    def keep(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`: the optimizer keeps all that is needed."""


class AdamDrift:
    """Along u = m_hat / (sqrt(v_hat) + eps), each parameter at the step count of its own last gradient.

    Decoupled weight decay acts at every drift step, at the current learning rate. The root of the second
    moment is a temporary the size of the parameters; nothing is kept.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def drift(self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, damping: float) -> None:
        """See `DriftRule`. A parameter without state has had no gradient, and stays."""
        by_count: dict[float, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            state = self._optimizer.state.get(parameter)
            if state:
                by_count[float(state["step"])].append(parameter)
        for count, members in by_count.items():
            self._drift_at(count, members, group, scale, damping)

    def _drift_at(
        self, count: float, parameters: list[Tensor], group: Mapping[str, Any], scale: float, damping: float
    ) -> None:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        rate = float(group["lr"]) * scale
        states = [self._optimizer.state[parameter] for parameter in parameters]
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        denominators = torch._foreach_sqrt([state[second] for state in states])
        torch._foreach_div_(denominators, (1.0 - beta2**count) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        if group.get("decoupled_weight_decay") and group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - rate * group["weight_decay"])
        sign = 1.0 if group["maximize"] else -1.0
        moments = [state["exp_avg"] for state in states]
        torch._foreach_addcdiv_(parameters, moments, denominators, value=sign * rate * damping / (1.0 - beta1**count))

    def keep(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`: the optimizer keeps all that is needed."""


class DisplacementDrift:
    """Along the displacement of the last step, scaled by the ratio of the learning rates now and then.

    Works for any optimizer whose step is proportional to its learning rate, and holds one buffer per
    parameter, in the parameter's dtype. A step at learning rate zero leaves no displacement.
    """

    needs_snapshot = True

    def __init__(self) -> None:
        self.velocity: dict[Tensor, Tensor] = {}
        """Displacement per unit of learning rate at the last refresh."""

    def drift(self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, damping: float) -> None:
        """See `DriftRule`. A parameter without a displacement has had no gradient, and stays."""
        moved = [(p, self.velocity[p]) for p in parameters if p in self.velocity]
        if moved:
            targets, velocities = zip(*moved, strict=True)
            torch._foreach_add_(targets, velocities, alpha=float(group["lr"]) * scale * damping)

    def keep(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`."""
        rate = float(group["lr"])
        velocities = torch._foreach_sub(list(parameters), list(before))
        torch._foreach_mul_(velocities, 1.0 / rate if rate else 0.0)
        self.velocity.update(zip(parameters, velocities, strict=True))


def choose_rule(optimizer: Optimizer, group: Mapping[str, Any], displacement: DisplacementDrift) -> DriftRule:
    """The drift rule for one torch parameter group of ``optimizer``; ``displacement`` where there is no other.

    A subclass may do anything in its step, so only the classes of torch themselves have rules of their own.
    """
    if type(optimizer) in (Adam, AdamW):
        return AdamDrift(optimizer)
    if type(optimizer) is SGD and group["momentum"] > 0:
        return SGDDrift(optimizer)
    return displacement


def default_damping(optimizer: Optimizer, period: int) -> float:
    """Factor on the drift of a group with ``period``, if the user names none.

    1 for SGD, as in Algorithm 1. Adam and its kin move a coordinate by about the learning rate whatever the
    noise in its gradient: repeated k times, one noisy direction adds k times the variance to the random
    walk of the weights. A move of sqrt(k) times the learning rate per cycle, a refresh of one and k - 1 drift steps of
    (sqrt(k) - 1) / (k - 1), keeps the variance per step at that of plain training.
    """
    return 1.0 if type(optimizer) is SGD or period == 1 else (period**0.5 - 1) / (period - 1)


def stretch_(parameters: Sequence[Tensor], before: Sequence[Tensor], factor: float) -> None:
    """Make the step from ``before`` to the present values of ``parameters`` ``factor`` times as long."""
    steps = torch._foreach_sub(list(parameters), list(before))
    torch._foreach_add_(list(parameters), steps, alpha=factor - 1.0)
