"""Search for the ladder of periods with the least loss of gradient value at a given work.

The value of all gradients of a block is assumed to grow with the square root of their number. Without bounds on the
periods, the optimum then gives each block gradients in proportion to (value / cost) squared, and no block is left out.
With a value linear in the number of gradients, one block would get all gradients. With a logarithmic value, gradients
would be spread over too many blocks at a small budget. Periods are powers of two that do not fall with depth. A ladder
is therefore a list of depths at which the period doubles, and all such lists are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations_with_replacement, count
from math import comb, sqrt


VALUE_RATIO = 16.0
"""Assumed value of a gradient of the top block divided by that of the lowest block, in fine-tuning."""

MAX_LADDERS = 40_000
"""Maximum number of ladders to try. In deep models, periods therefore double only at every second or third block."""


def expected_values(number: int) -> list[float]:
    """Assumed value of a gradient of each block, from the top. It falls geometrically with depth."""
    return [VALUE_RATIO ** -(block / max(1, number - 1)) for block in range(number)]


def lost(period: int) -> float:
    """Share of the gradient value of a block that is lost with one gradient in ``period`` steps."""
    return 1.0 - sqrt(1.0 / period)


def work_of(costs: Sequence[float], fixed: float, periods: Sequence[int]) -> float:
    """Mean work of a step, in the unit of ``costs``."""
    return fixed + sum(cost / period for cost, period in zip(costs, periods, strict=True))


def slowest(number: int, longest: int) -> tuple[int, ...]:
    """Cheapest periods: 1 for the first of ``number`` blocks, ``longest`` for all others."""
    return (1, *[longest] * (number - 1))


def search_ladder(
    values: Sequence[float], costs: Sequence[float], fixed: float, budget: float, longest: int
) -> tuple[int, ...]:
    """Search the periods of blocks, from the top, with the least loss of value at a mean work up to ``budget``.

    The first block has period 1. If no periods are within the budget, the cheapest ones are returned.

    Args:
        values: Value of a gradient of each block; not negative.
        costs: Work of backward for each block, in the unit of ``budget``.
        fixed: Work that every step has, e.g. of the forward pass.
        budget: Maximum mean work of a step.
        longest: Longest period, a power of two.

    >>> search_ladder([1.0, 2.0, 1.0], [0.1, 0.3, 0.3], fixed=0.3, budget=0.72, longest=16)
    (1, 1, 16)
    """
    number = len(costs)
    values_below, costs_below = _below(values), _below(costs)
    doublings = range(1, longest.bit_length())
    stride = next(n for n in count(1) if comb(-(-(number - 1) // n) + len(doublings), len(doublings)) <= MAX_LADDERS)
    places = [*range(1, number, stride), number]
    losses = [lost(1 << i) - lost(1 << (i - 1)) for i in doublings]
    best = (float("inf"), slowest(number, longest))
    for cuts in combinations_with_replacement(places, len(doublings)):
        # Below the i-th cut the period is at least 2**i, which saves another 2**-i gradients per step.
        saved = sum(costs_below[cut] / (1 << i) for i, cut in zip(doublings, cuts, strict=True))
        if fixed + costs_below[0] - saved <= budget:
            loss = sum(values_below[cut] * added for cut, added in zip(cuts, losses, strict=True))
            if loss <= best[0]:
                best = min(best, (loss, _periods(cuts, number)))
    return best[1]


def _below(values: Sequence[float]) -> list[float]:
    """Sums of the values from each position to the end."""
    return [*accumulate(reversed(values), initial=0.0)][::-1]


def _periods(cuts: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(1 << sum(cut <= block for cut in cuts) for block in range(number))
