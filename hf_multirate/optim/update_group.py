"""What is moved together: parameters of one rate group in one group of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_multirate.config.rate_group import RateGroup
from hf_multirate.optim.adam_drift import AdamDrift
from hf_multirate.optim.drift import Basis, DisplacementDrift, DriftRule, SGDDrift
from hf_multirate.optim.dtensor import total


@dataclass
class UpdateGroup:
    """The parameters of one rate group that share a torch parameter group, with their drift rule."""

    index: int
    rate_group: RateGroup
    torch_group: int
    parameters: list[nn.Parameter]
    rule: DriftRule
    trust: DriftFactors
    before: list[Tensor] = field(default_factory=list)
    course: Callable[[float], None] | None = None
    """What drifts the parameters until their next step, or until its basis changes."""
    basis: Basis | None = None
    """What the course was made from."""
    levels: dict[Tensor, int] = field(default_factory=dict)

    def gradient_update_products(
        self, stepped: Sequence[nn.Parameter], group: Mapping[str, Any], scale: float
    ) -> dict[Tensor, float]:
        """Inner products of fresh gradients with last updates, all fetched from the device at once.

        Args:
            stepped: Those of the parameters that have a gradient.
            group: The group of the optimizer.
            scale: What the gradients are multiplied with.
        """
        found = self.rule.gradient_update_products(stepped, group)
        known = [(p, slope) for p, slope in zip(stepped, found, strict=True) if slope is not None]
        if not known:
            return {}
        sums = total([slope for _, slope in known], [p for p, _ in known]).tolist()
        return {p: slope / scale for (p, _), slope in zip(known, sums, strict=True)}


RATIO = 1.5
START, LEAST = 7, 11
"""Levels n of the factor RATIO ** -n: 0.06 before anything is known, and at least 0.01."""


class DriftFactors:
    """Drift factor of every parameter: a constant, or a level that each refresh moves by one.

    Args:
        parameters: All parameters that may drift.
        constant: The factor of all of them, for good; None to find it.
    """

    def __init__(self, parameters: Sequence[Tensor], constant: float | None) -> None:
        self._adapts = constant is None
        self.levels: dict[Tensor, int] = dict.fromkeys(parameters, START) if constant is None else {}
        self.factors: dict[Tensor, float] = dict.fromkeys(parameters, RATIO**-START if constant is None else constant)

    @property
    def adapts(self) -> bool:
        """Whether `update_levels` is of any use."""
        return self._adapts

    def update_levels(self, slopes: Mapping[Tensor, float]) -> dict[Tensor, int]:
        """Levels that follow from the inner products of fresh gradients with last updates; see `set`."""
        return {
            p: max(self.levels[p] - 1, 0) if slope < 0 else min(self.levels[p] + 1, LEAST)
            for p, slope in slopes.items()
        }

    def set(self, levels: Mapping[Tensor, int]) -> None:
        """Take over levels of `update_levels` or of a checkpoint."""
        self.levels.update(levels)
        self.factors.update({parameter: RATIO**-level for parameter, level in levels.items()})


def choose_rule(optimizer: Optimizer, group: Mapping[str, Any], displacement: DisplacementDrift) -> DriftRule:
    """The drift rule for one torch parameter group of ``optimizer``; ``displacement`` where there is no other.

    A subclass may do anything in its step, so only the classes of torch themselves have rules of their own.
    """
    if type(optimizer) in (Adam, AdamW):
        return AdamDrift(optimizer)
    if type(optimizer) is SGD and group["momentum"] > 0:
        return SGDDrift(optimizer)
    return displacement
