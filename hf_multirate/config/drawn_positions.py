"""Drawn positions of the gradient step within each cycle, a function of the seed and the number of the cycle.

With a fixed position, slow parameters always see the batch at the same position of a cycle. Data may repeat with a
similar interval: data sets in turn, batches sorted by length, a loss term at every k-th step. If that interval shares
a divisor with the period, a slow group never sees part of the data. Drawn positions avoid this. They are also
balanced: each is drawn among the least frequent positions, for the period and for all intervals of a few steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache


INTERVALS = range(2, 17)
"""Intervals, in steps, at which the data may repeat. Gradient steps are spread evenly over the positions of each."""

EARLY_INTERVALS = range(2, 9)
"""Intervals for the first `EARLY_WINDOWS` windows, whose few gradient steps cannot be spread over all intervals."""

EARLY_WINDOWS = 16

LONGEST_BALANCED_PERIOD = 64
"""Longest period with balanced draws. Longer periods have few cycles in a run and take longer to set up."""

BALANCED_WINDOWS = 64
"""Number of windows over which draws are balanced."""


@dataclass(frozen=True)
class DrawnPositions:
    """Positions of gradient steps for several periods, equal in all processes and after a resume.

    Window ``w`` of period ``p`` contains the steps from ``w * p`` to ``(w + 1) * p - 1``; one of them is the gradient
    step. Periods that divide each other are nested: a gradient step of the longer period is also one of the shorter
    period. In window 0 the position is 0, so that no group is idle before its first gradient.

    Args:
        periods: Periods of all groups, in any order.
        seed: Seed of the draws.

    >>> drawn = DrawnPositions((2, 4), seed=0)
    >>> [4 * w + drawn.position(4, w) for w in range(6)]
    [0, 5, 9, 14, 18, 22]
    >>> [2 * w + drawn.position(2, w) for w in range(12)]
    [0, 2, 5, 7, 9, 11, 13, 14, 16, 18, 20, 22]
    """

    periods: tuple[int, ...]
    seed: int = 0

    @cached_property
    def _longer(self) -> dict[int, int | None]:
        """Main chain of periods: period -> the next longer period, which it divides; the longest -> None."""
        chain: dict[int, int | None] = {}
        last: int | None = None
        for period in sorted({period for period in self.periods if period > 1}, reverse=True):
            if last is None or last % period == 0:
                chain[period], last = last, period
        return chain

    def position(self, period: int, window: int) -> int:
        """Position of the gradient step in ``window``, from 0 to ``period - 1``."""
        if window == 0 or period == 1:
            return 0
        if period > LONGEST_BALANCED_PERIOD:
            candidates = self._candidates(period, window)
            return candidates[_hash(self.seed, period, window, 0) % len(candidates)]
        windows = -(-BALANCED_WINDOWS // period) * period
        return _block(self, period, window // windows, windows)[window % windows]

    def _candidates(self, period: int, window: int) -> Sequence[int]:
        """Positions that keep the periods nested."""
        longer = self._longer.get(period)
        if longer is not None:
            windows = longer // period
            shared, position = divmod(self.position(longer, window // windows), period)
            return [position] if window % windows == shared else range(period)
        inner = max((p for p in self.periods if 1 < p < period and period % p == 0), default=1)
        if period in self._longer or inner == 1:
            return range(period)
        # A period outside the main chain uses the gradient steps of the longest period that divides it.
        parts = period // inner
        return [part * inner + self.position(inner, window * parts + part) for part in range(parts)]


@lru_cache(maxsize=1024)
def _block(drawn: DrawnPositions, period: int, block: int, windows: int) -> tuple[int, ...]:
    """Positions in a block of ``windows`` windows, each drawn among the least frequent positions of the block."""
    frequencies = {interval: [0] * interval for interval in {*INTERVALS, period}}
    positions = []
    for window in range(block * windows, (block + 1) * windows):
        start = window * period

        def rank(position: int, start: int = start, window: int = window) -> tuple[int, int]:
            intervals = {*(EARLY_INTERVALS if window < EARLY_WINDOWS else INTERVALS), period}
            frequency = sum(interval * frequencies[interval][(start + position) % interval] for interval in intervals)
            return frequency, _hash(drawn.seed, period, window, position)

        candidates = drawn._candidates(period, window) if window else [0]
        chosen = min(candidates, key=rank) if len(candidates) > 1 else candidates[0]
        positions.append(chosen)
        for interval, counts in frequencies.items():
            counts[(start + chosen) % interval] += 1
    return tuple(positions)


def _hash(seed: int, period: int, window: int, item: int) -> int:
    # Generators of the random module may differ between Python versions; a resumed run must draw the same positions.
    text = f"{seed}/{period}/{window}/{item}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
