"""Search for the periods of blocks that lose least at a given work: a ladder by depth.

The value of all gradients of a block is assumed to grow with the square root of their number. Without bounds the
least loss at given work is then where each block has gradients in proportion to the square of value over cost, and no
block is left out. If the value did not depend on the number, one block would get all gradients. If it grew with the
logarithm of the number, small budgets would be spread thin. Periods are powers of two that do not fall with depth, so
a ladder is a list of depths at which the period doubles. All such lists are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, combinations_with_replacement, count
from math import comb, sqrt


FALL = 16.0
"""Assumed value of a gradient of the top block over that of a gradient of the lowest block, in fine-tuning."""

LADDERS = 40_000
"""Ladders that are tried at most: in deep models periods double only at every second or third block."""


def expected_values(number: int) -> list[float]:
    """Assumed value of a gradient of each block, from the top: it falls geometrically with depth."""
    return [FALL ** -(block / max(1, number - 1)) for block in range(number)]


def lost(period: int) -> float:
    """Share of the value of a block that is lost with one gradient in ``period`` steps."""
    return 1.0 - sqrt(1.0 / period)


def work_of(costs: Sequence[float], fixed: float, periods: Sequence[int]) -> float:
    """Mean work of a step, in the unit of ``costs``."""
    return fixed + sum(cost / period for cost, period in zip(costs, periods, strict=True))


def slowest(number: int, longest: int) -> tuple[int, ...]:
    """The cheapest periods: only the first of ``number`` blocks gets a gradient at every step."""
    return (1, *[longest] * (number - 1))


def search_ladder(
    values: Sequence[float], costs: Sequence[float], fixed: float, budget: float, longest: int
) -> tuple[int, ...]:
    """Periods of blocks, from the top, with the least loss of value at a mean work of at most ``budget``.

    The first block has period 1. If no periods are cheap enough, the cheapest are returned.

    Args:
        values: Of a gradient of each block; not negative.
        costs: Work of backward for each block, in the unit of ``budget``.
        fixed: Work of every step, whichever blocks are live.
        budget: Mean work of a step.
        longest: The longest period, a power of two.

    >>> search_ladder([1.0, 2.0, 1.0], [0.1, 0.3, 0.3], fixed=0.3, budget=0.72, longest=16)
    (1, 1, 16)
    """
    number = len(costs)
    values_below, costs_below = _below(values), _below(costs)
    doublings = range(1, longest.bit_length())
    stride = next(n for n in count(1) if comb(-(-(number - 1) // n) + len(doublings), len(doublings)) <= LADDERS)
    places = [*range(1, number, stride), number]
    losses = [lost(1 << i) - lost(1 << (i - 1)) for i in doublings]
    best = (float("inf"), slowest(number, longest))
    for cuts in combinations_with_replacement(places, len(doublings)):
        # Below the i-th cut the period is 2**i at least, which saves 2**-i of a gradient a step.
        saved = sum(costs_below[cut] / (1 << i) for i, cut in zip(doublings, cuts, strict=True))
        if fixed + costs_below[0] - saved <= budget:
            loss = sum(values_below[cut] * more for cut, more in zip(cuts, losses, strict=True))
            if loss <= best[0]:
                best = min(best, (loss, _periods(cuts, number)))
    return best[1]


def _below(values: Sequence[float]) -> list[float]:
    """Sums of the values from each place on."""
    return [*accumulate(reversed(values), initial=0.0)][::-1]


def _periods(cuts: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(1 << sum(cut <= block for cut in cuts) for block in range(number))
