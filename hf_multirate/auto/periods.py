"""From what blocks are worth and cost to a period for each: a ladder by depth.

What the gradients of a block are worth together is taken to grow with the square root of their number. Without
bounds the least loss at given work is then where each block has gradients in proportion to the square of worth over
cost: the worth of all that is spent is the same everywhere, and none is left out for good. If worth did not depend
on how often gradients come, one block would have them all; if it grew with the logarithm of their number, they would
be in proportion to worth over cost, which spreads work thin where budgets are small. Here periods are powers of two
that do not fall with depth, so that a ladder is the places at which the period doubles, and all of them are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations_with_replacement, count
from math import comb, sqrt

from hf_multirate.config.schedule import Schedule


FALL = 16.0
"""What a gradient of the top block is taken to be worth over one of the lowest, in fine-tuning."""

LADDERS = 40_000
"""That are tried at most: in a deep model periods double at every second block or every third alone."""


def expected(number: int) -> list[float]:
    """Worth of blocks from the top before anything is measured: it falls with depth."""
    return [FALL ** -(block / max(1, number - 1)) for block in range(number)]


def lost(period: int) -> float:
    """Share of the worth of a block that is lost by a gradient at every ``period``-th step alone."""
    return 1.0 - sqrt(1.0 / period)


def work_of(costs: Sequence[float], fixed: float, periods: Sequence[int]) -> float:
    """Mean work of a step: that of every step, and each block's at its own."""
    return fixed + sum(cost / period for cost, period in zip(costs, periods, strict=True))


def slowest(number: int, longest: int) -> tuple[int, ...]:
    """Periods that cost least: only the top of ``number`` blocks at every step."""
    return (1, *[longest] * (number - 1))


def ladder(
    worth: Sequence[float], costs: Sequence[float], fixed: float, budget: float, longest: int
) -> tuple[int, ...]:
    """Periods of blocks from the top with the least loss at work of at most ``budget``.

    The first block has period 1. If no periods are cheap enough, those that cost least are returned.

    Args:
        worth: Of a gradient of each block; not negative.
        costs: Work of backward for each block, in the unit of ``budget``.
        fixed: Work of every step whatever is live.
        budget: Mean work of a step.
        longest: The longest period, a power of two.

    >>> ladder([1.0, 2.0, 1.0], [0.1, 0.3, 0.3], fixed=0.3, budget=0.72, longest=16)
    (1, 1, 16)
    """
    number = len(costs)
    worth_below, costs_below = _below(worth), _below(costs)
    doublings = range(1, longest.bit_length())
    stride = next(n for n in count(1) if comb(-(-(number - 1) // n) + len(doublings), len(doublings)) <= LADDERS)
    places = [*range(1, number, stride), number]
    losses = [lost(1 << i) - lost(1 << (i - 1)) for i in doublings]
    best = (float("inf"), slowest(number, longest))
    for cuts in combinations_with_replacement(places, len(doublings)):
        # Below the i-th cut the period is 2**i at least, which saves 2**-i of a gradient a step.
        saved = sum(costs_below[cut] / (1 << i) for i, cut in zip(doublings, cuts, strict=True))
        if fixed + costs_below[0] - saved <= budget:
            loss = sum(worth_below[cut] * more for cut, more in zip(cuts, losses, strict=True))
            if loss <= best[0]:
                best = min(best, (loss, _periods(cuts, number)))
    return best[1]


def _below(values: Sequence[float]) -> list[float]:
    """Sums of the values from each place on."""
    return [*accumulate(reversed(values), initial=0.0)][::-1]


def _periods(cuts: Sequence[int], number: int) -> tuple[int, ...]:
    return tuple(1 << sum(cut <= block for cut in cuts) for block in range(number))


@dataclass(frozen=True)
class Plan:
    """What every block does from step ``start`` on, blocks from the top.

    Attributes:
        start: The first step.
        until: The step at which the next plan is made; None for never.
        cycle_start: The step at which the cycle of the periods begins; those before it are full.
        periods: Steps between two gradients of each block.
        drift: Idle steps at which each block drifts.
        worth: What the periods were made from, at a learning rate of 1; None where nothing was known.
        turns: Position of gradients within periods: see `hf_multirate.config.schedule.Schedule`.
        turns_seed: Seed of drawn positions.
    """

    start: int
    until: int | None
    cycle_start: int
    periods: tuple[int, ...]
    drift: tuple[int, ...]
    worth: tuple[float, ...] | None = None
    turns: str = "fixed"
    turns_seed: int = 0

    @property
    def schedule(self) -> Schedule:
        """Which blocks get a gradient at which step."""
        return Schedule(self.periods, self.cycle_start, self.turns, self.turns_seed)
