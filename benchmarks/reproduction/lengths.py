"""The length of training: the fewest epochs at which training all parameters has levelled off.

All parameters are trained for each number of epochs, at the middle rate of the grid, with the schedule of that length.
Training has levelled off if accuracy on validation rows gains less than half a point in the last third of the steps.
If no length is long enough, the longest is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


GAIN = 0.005
"""Gain of accuracy in the last third of the steps below which training has levelled off."""


def last_gain(curve: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy at the end less that at two thirds of the steps, of a curve of at least one point."""
    end = curve[-1]
    before = min(curve, key=lambda point: abs(point["step"] - end["step"] * 2 / 3))
    return float(end["metric"] - before["metric"])


def levelled_off(curve: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run was long enough."""
    return last_gain(curve) < GAIN
