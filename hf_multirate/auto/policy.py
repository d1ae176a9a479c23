"""From what blocks are worth and cost to a period for each: a ladder by depth.

The loss lost to staleness is taken to be the sum of worth times period, the work of a step the sum of cost over
period. Without bounds the least loss at given work is at periods proportional to the root of cost over worth. Here
periods are powers of two that do not fall with depth, and the least is found exactly: for each price of work by
dynamic programming over blocks, and the price by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


PRICES = 60
"""Bisections of the price, over forty decades."""


def powers(longest: int) -> list[int]:
    """1, 2, 4 up to ``longest``."""
    return [1 << i for i in range(longest.bit_length()) if 1 << i <= longest]


def work_of(costs: Sequence[float], fixed: float, periods: Sequence[int]) -> float:
    """Mean work of a step: that of every step, and each block's at its own."""
    return fixed + sum(cost / period for cost, period in zip(costs, periods, strict=True))


def loss(period: int) -> float:
    """What is lost, in units of the worth of a gradient, by having one at every ``period``-th step."""
    return math.log2(period)


def ladder(
    worth: Sequence[float], costs: Sequence[float], fixed: float, budget: float, longest: int
) -> tuple[int, ...]:
    """Periods of blocks from the top, with the least ``sum(worth * period)`` at work of at most ``budget``.

    The first block has period 1. If no periods are cheap enough, the longest are returned.

    Args:
        worth: Of a gradient of each block; positive.
        costs: Work of backward for each block, in the unit of ``budget``.
        fixed: Work of every step whatever is live.
        budget: Mean work of a step.
        longest: The longest period, a power of two.

    >>> ladder([1.0, 1.0, 1.0], [0.1, 0.3, 0.3], fixed=0.3, budget=0.6, longest=16)
    (1, 2, 4)
    """
    slowest = (1, *[longest] * (len(costs) - 1))
    if work_of(costs, fixed, slowest) >= budget:
        return slowest
    low, high, best = -20.0, 20.0, slowest  # a price of 10 ** high buys nothing
    for _ in range(PRICES):
        middle = (low + high) / 2
        periods = _cheapest(worth, costs, 10**middle, longest)
        if work_of(costs, fixed, periods) > budget:
            low = middle
        else:
            high, best = middle, periods
    return _filled(best, worth, costs, fixed, budget)


def _cheapest(worth: Sequence[float], costs: Sequence[float], price: float, longest: int) -> tuple[int, ...]:
    """Periods that do not fall with depth, with the least worth times period plus price times cost over period."""
    best: dict[int, tuple[float, tuple[int, ...]]] = {1: (price * costs[0], (1,))}
    for value, cost in zip(worth[1:], costs[1:], strict=True):
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for period in powers(longest):
            total, above = min(best[shorter] for shorter in best if shorter <= period)
            found[period] = (total + value * loss(period) + price * cost / period, (*above, period))
        best = found
    return min(best.values())[1]


def _filled(
    periods: tuple[int, ...], worth: Sequence[float], costs: Sequence[float], fixed: float, budget: float
) -> tuple[int, ...]:
    """Halve further periods, the best buy first, as long as the budget allows it: prices skip some ladders."""
    current = list(periods)
    while True:
        left = budget - work_of(costs, fixed, current)
        fits = [
            (worth[i] * (loss(current[i]) - loss(current[i] // 2)) * current[i] / max(costs[i], 1e-12), i)
            for i in range(1, len(current))
            if current[i] > current[i - 1] and costs[i] / current[i] <= left
        ]
        if not fits:
            return tuple(current)
        current[max(fits)[1]] //= 2
