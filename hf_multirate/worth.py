"""What the gradient of each block is worth: the decrease of the loss that its last update still buys."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockWorth:
    """Of one block: the decrease of the loss, and the steps since the update that brings it."""

    decrease: float
    age: int


class Worth:
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

    def take(self, blocks: Mapping[str, str]) -> dict[str, BlockWorth]:
        """By block, from parameter name -> block; nothing is left behind."""
        sums: dict[str, float] = defaultdict(float)
        ages: dict[str, int] = {}
        for name, value in self._sums.items():
            sums[blocks[name]] += value / self._counts[name]
            ages[blocks[name]] = max(self._ages[name], ages.get(blocks[name], 0))
        self._sums.clear()
        self._counts.clear()
        return {block: BlockWorth(value, ages[block]) for block, value in sums.items()}
