"""Bounds on the mean squared gradient of multirate SGD: the printed one, one that holds, and a sharper one.

The scheme: no momentum, inner step size h, one period k. The fast part gets a gradient at every step. All slow groups
get one at the steps 0, k, 2k, ... and drift along it until the next. T is a multiple of k.

In each bound f is L-smooth, the expected squared norm of a minibatch gradient is at most M, and there are l groups.
docs/results/bounds.md has the derivation.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """What the bounds need to know about a problem and its groups.

    Attributes:
        gap: Loss at the start minus the least loss.
        smoothness: L, the Lipschitz constant of the gradient.
        moment: M, the largest expected squared norm of a minibatch gradient.
        groups: Number of groups.
        parts: The largest expected squared norm of the slow part of a minibatch gradient, plus that of its fast part.
        variance: The largest variance of the slow part of a minibatch gradient, summed over its coordinates.
    """

    gap: float
    smoothness: float
    moment: float
    groups: int
    parts: float
    variance: float


def printed(known: Constants, h: float, k: int, steps: int) -> float:
    """The bound of the paper's corrigendum."""
    floor = h * known.smoothness * known.moment * known.groups
    return _transient(known, h, steps) + floor * (1 + h * known.smoothness * k**2 / 3)


def corrected(known: Constants, h: float, k: int, steps: int) -> float:
    """A bound that holds for the scheme as it is run, with the slow gradient of an old minibatch."""
    floor = h * known.smoothness * known.moment * known.groups
    return _transient(known, h, steps) + floor * (k + 2 * h * known.smoothness * k**2 / 3)


def sharper(known: Constants, h: float, k: int, steps: int) -> float:
    """The same without rounding up: only the slow part's own variance grows with k."""
    old = (k - 1) * (known.parts * known.variance) ** 0.5
    moved = h * known.smoothness * known.parts * (k - 1) * (2 * k - 1) / 6
    return _transient(known, h, steps) + h * known.smoothness * (known.parts + old + moved)


def _transient(known: Constants, h: float, steps: int) -> float:
    return 2 * known.gap / (h * steps)


BOUNDS = {"printed": printed, "corrected": corrected, "sharper": sharper}
