"""Parameters of one rate group in one parameter group of the optimizer, with drift rule and drift factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from hf_multirate.config.rate_group import RateGroup
from hf_multirate.optim.adam_drift import AdamDrift
from hf_multirate.optim.drift import Basis, DisplacementDrift, DriftRule, SGDDrift
from hf_multirate.optim.dtensor import full_sums


@dataclass
class UpdateGroup:
    """The parameters of one rate group in one parameter group of the optimizer.

    Attributes:
        index: Index of the rate group.
        rate_group: Settings of the rate group.
        place: Index of the parameter group in the optimizer.
        parameters: The parameters.
        rule: Drift rule.
        factors: Drift factors.
        before: Values before the present step, if the step is recorded.
        drift: Function of the learning rate that takes one drift step; see `DriftRule.prepare_drift`.
        basis: Settings and state from which ``drift`` was prepared.
        new_levels: Levels of drift factors that follow from the present step.
        drifts: Whether the rate group drifts.
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

    def __post_init__(self) -> None:
        """Derive the setting that every step needs."""
        self.drifts = self.rate_group.idle == "drift"

    def gradient_update_products(
        self, stepped: Sequence[nn.Parameter], settings: Mapping[str, Any], scale: float | Tensor
    ) -> InnerProducts | None:
        """Inner products of fresh gradients with last updates, computed on the device without a wait.

        Args:
            stepped: The parameters that have a gradient.
            settings: The parameter group of the optimizer.
            scale: Factor on the gradients, by which the products are divided.

        Returns:
            The products of the parameters with a last update; None if there is none.
        """
        products = self.rule.gradient_update_products(stepped, settings)
        with_update = [(p, product) for p, product in zip(stepped, products, strict=True) if product is not None]
        if not with_update:
            return None
        parameters = [p for p, _ in with_update]
        return InnerProducts(parameters, full_sums([product for _, product in with_update], parameters), scale)


@dataclass(frozen=True)
class InnerProducts:
    """Inner products of gradients with last updates, on the device.

    Attributes:
        parameters: The parameters.
        sums: Products of their gradients, one for each parameter.
        scale: Factor on the gradients. A tensor belongs to these products alone.
    """

    parameters: Sequence[Tensor]
    sums: Tensor
    scale: float | Tensor

    def read(self) -> dict[Tensor, float]:
        """Parameter -> product, divided by the scale. Waits for the device."""
        return self.of(self.sums.tolist())

    def of(self, sums: Sequence[float]) -> dict[Tensor, float]:
        """As `read`, from the values of `sums`."""
        scale = float(self.scale)
        return {p: product / scale for p, product in zip(self.parameters, sums, strict=True)}


BASE = 1.5
INITIAL_LEVEL, MAX_LEVEL = 7, 11
"""Levels n of the drift factor BASE ** -n: initially 0.06, never below 0.01."""


class DriftFactors:
    """Drift factor of each parameter: a constant, or a level that each refresh changes by one.

    Args:
        parameters: All parameters that may drift.
        constant: The factor of all parameters; None for factors that adapt.
    """

    def __init__(self, parameters: Sequence[Tensor], constant: float | None) -> None:
        self._adapts = constant is None
        self.levels: dict[Tensor, int] = dict.fromkeys(parameters, INITIAL_LEVEL) if constant is None else {}
        self.factors: dict[Tensor, float] = dict.fromkeys(
            parameters, BASE**-INITIAL_LEVEL if constant is None else constant
        )

    @property
    def adapts(self) -> bool:
        """Whether the factors change during training."""
        return self._adapts

    def next_levels(self, products: Mapping[Tensor, float]) -> dict[Tensor, int]:
        """New levels by parameter, from the inner products of fresh gradients with last updates.

        The factor of a parameter grows if its last update still reduces the loss (a negative product), else it
        shrinks. The levels take effect with `set_levels`. NaN stands for no last update.
        """
        return {
            p: max(self.levels[p] - 1, 0) if product < 0 else min(self.levels[p] + 1, MAX_LEVEL)
            for p, product in products.items()
            if not math.isnan(product)
        }

    def set_levels(self, levels: Mapping[Tensor, int]) -> None:
        """Set the levels returned by `next_levels` or loaded from a checkpoint."""
        self.levels.update(levels)
        self.factors.update({parameter: BASE**-level for parameter, level in levels.items()})


def choose_rule(optimizer: Optimizer, group: Mapping[str, Any], displacement: DisplacementDrift) -> DriftRule:
    """The drift rule for one parameter group of ``optimizer``; ``displacement`` if there is no specific rule.

    Only the torch classes themselves have specific rules, because a subclass may compute another step.
    """
    if type(optimizer) in (Adam, AdamW):
        return AdamDrift(optimizer)
    if type(optimizer) is SGD and group["momentum"] > 0:
        return SGDDrift(optimizer)
    return displacement
