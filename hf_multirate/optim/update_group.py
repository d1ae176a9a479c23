"""Parameters of one rate group in one group of the optimizer, their drift rule and their drift factors."""

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
    """The parameters of one rate group that share a group of the optimizer.

    Attributes:
        index: Index of the rate group.
        rate_group: Its settings.
        place: Index of the group of the optimizer.
        parameters: The parameters.
        rule: How they drift.
        factors: How far they drift.
        before: Values before the present step, if it is lengthened or recorded.
        drift: Moves the parameters at a learning rate, until their next step or until its basis changes.
        basis: What ``drift`` was made from.
        new_levels: Levels of drift factors that the present step sets.
    """

    index: int
    rate_group: RateGroup
    place: int
    parameters: list[nn.Parameter]
    rule: DriftRule
    factors: DriftFactors
    before: list[Tensor] = field(default_factory=list)
    drift: Callable[[float], None] | None = None
    basis: Basis | None = None
    new_levels: dict[Tensor, int] = field(default_factory=dict)
    drifts: bool = field(init=False)
    step_factor: float = field(init=False)

    def __post_init__(self) -> None:
        """Settings that each step asks for."""
        self.drifts = self.rate_group.idle == "drift"
        length = self.rate_group.period if self.rate_group.idle == "long_step" else 1
        self.step_factor = length * self.rate_group.lr_scale

    def gradient_update_products(
        self, stepped: Sequence[nn.Parameter], settings: Mapping[str, Any], scale: float
    ) -> dict[Tensor, float]:
        """Inner products of fresh gradients with last updates, all fetched from the device at once.

        Args:
            stepped: The parameters that have a gradient.
            settings: The group of the optimizer.
            scale: Factor on the gradients, which is taken out of the products.
        """
        found = self.rule.gradient_update_products(stepped, settings)
        known = [(p, product) for p, product in zip(stepped, found, strict=True) if product is not None]
        if not known:
            return {}
        sums = total([product for _, product in known], [p for p, _ in known]).tolist()
        return {p: product / scale for (p, _), product in zip(known, sums, strict=True)}


RATIO = 1.5
START, LEAST = 7, 11
"""Levels n of the factor RATIO ** -n: 0.06 before anything is known, and at least 0.01."""


class DriftFactors:
    """Drift factor of every parameter: a constant, or a level that each refresh moves by one.

    Args:
        parameters: All parameters that may drift.
        constant: The factor of all of them; None for factors that adapt.
    """

    def __init__(self, parameters: Sequence[Tensor], constant: float | None) -> None:
        self._adapts = constant is None
        self.levels: dict[Tensor, int] = dict.fromkeys(parameters, START) if constant is None else {}
        self.factors: dict[Tensor, float] = dict.fromkeys(parameters, RATIO**-START if constant is None else constant)

    @property
    def adapts(self) -> bool:
        """Whether the factors change in training."""
        return self._adapts

    def next_levels(self, products: Mapping[Tensor, float]) -> dict[Tensor, int]:
        """Levels that follow from the inner products of fresh gradients with last updates; see `set_levels`."""
        return {
            p: max(self.levels[p] - 1, 0) if product < 0 else min(self.levels[p] + 1, LEAST)
            for p, product in products.items()
        }

    def set_levels(self, levels: Mapping[Tensor, int]) -> None:
        """Take over levels of `next_levels` or of a checkpoint."""
        self.levels.update(levels)
        self.factors.update({parameter: RATIO**-level for parameter, level in levels.items()})


def choose_rule(optimizer: Optimizer, group: Mapping[str, Any], displacement: DisplacementDrift) -> DriftRule:
    """The drift rule for one group of ``optimizer``; ``displacement`` if no other fits.

    A subclass may do anything in its step, so only the classes of torch themselves have rules of their own.
    """
    if type(optimizer) in (Adam, AdamW):
        return AdamDrift(optimizer)
    if type(optimizer) is SGD and group["momentum"] > 0:
        return SGDDrift(optimizer)
    return displacement
