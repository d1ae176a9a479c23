"""How far idle parameters drift under an optimizer that normalises its updates.

Adam moves a coordinate by about the learning rate whatever the size of its gradient, so an update along a
direction that has gone stale is as long as one along a good direction, and drift repeats it. At
learning rates where plain training is fine that can overshoot and diverge. So each parameter has a
factor on its drift, found by looking back at every refresh: if the fresh gradient says that going on along the last
update would still lower the loss, the factor grows, else it shrinks. It settles where drift ends in
a minimum along its direction, as an inexact line search does. The rule is ours, not the paper's: SGD drifts in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


RATIO = 1.5
START, LEAST = 7, 11
"""Levels n of the factor RATIO ** -n: 0.06 before anything is known, and at least 0.01."""


class DriftTrust:
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
        """Whether `look_back` is of any use."""
        return self._adapts

    def look_back(self, slopes: Mapping[Tensor, float]) -> dict[Tensor, int]:
        """Levels that follow from the inner products of fresh gradients with last updates; see `set`."""
        return {
            p: max(self.levels[p] - 1, 0) if slope < 0 else min(self.levels[p] + 1, LEAST)
            for p, slope in slopes.items()
        }

    def set(self, levels: Mapping[Tensor, int]) -> None:
        """Take over levels of `look_back` or of a checkpoint."""
        self.levels.update(levels)
        self.factors.update({parameter: RATIO**-level for parameter, level in levels.items()})
