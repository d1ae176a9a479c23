"""Draw the position of the gradient step within each cycle, from a seed and the number of the cycle alone.

With a fixed position the slow parameters see one batch of each cycle, always the one at the same place. Whatever else
has a rhythm (data sets in turn, batches sorted by length, a loss term at every k-th step) may have a common divisor
with the period, and a slow group then never sees part of the data. Drawn positions have no rhythm. They are also
balanced: the draw is among the positions that came up least, for the period and for all rhythms of a few steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache


RHYTHMS = range(2, 17)
"""Steps after which something else may repeat: gradient steps are spread evenly over the positions of each."""

FIRST_RHYTHMS = range(2, 9)
"""Those of the first `FIRST` windows: so few gradient steps cannot be spread over all of them."""

FIRST = 16

LONGEST_BALANCED = 64
"""The longest period with balanced draws. Longer ones have few cycles in a run, and would take time to set up."""

BLOCK = 64
"""Windows over which draws are balanced."""


@dataclass(frozen=True)
class DrawnPositions:
    """Positions of gradient steps for several periods; a pure function, equal in all processes and after a resume.

    Window ``w`` of period ``p`` has the steps from ``w * p`` to ``(w + 1) * p - 1``, and one of them is the gradient
    step. Periods that divide each other are nested: a gradient step of the longer period is one of the shorter period
    too. In window 0 the position is 0, so that no group is idle before its first gradient.

    Args:
        periods: Periods of any number of groups, in any order.
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
        """The main chain: each period in it -> the next longer one, which it divides; the longest -> None."""
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
        if period > LONGEST_BALANCED:
            candidates = self._candidates(period, window)
            return candidates[_hash(self.seed, period, window, 0) % len(candidates)]
        windows = -(-BLOCK // period) * period
        return _block(self, period, window // windows, windows)[window % windows]

    def _candidates(self, period: int, window: int) -> Sequence[int]:
        """Positions that keep periods nested."""
        longer = self._longer.get(period)
        if longer is not None:
            windows = longer // period
            shared, position = divmod(self.position(longer, window // windows), period)
            return [position] if window % windows == shared else range(period)
        inner = max((p for p in self.periods if 1 < p < period and period % p == 0), default=1)
        if period in self._longer or inner == 1:
            return range(period)
        # Outside of the main chain: the gradient steps of the longest period that divides this one.
        parts = period // inner
        return [part * inner + self.position(inner, window * parts + part) for part in range(parts)]


@lru_cache(maxsize=1024)
def _block(drawn: DrawnPositions, period: int, block: int, windows: int) -> tuple[int, ...]:
    """Positions in a block of ``windows`` windows: each is drawn among those that have come up least in the block."""
    seen = {rhythm: [0] * rhythm for rhythm in {*RHYTHMS, period}}
    positions = []
    for window in range(block * windows, (block + 1) * windows):
        start = window * period

        def rank(position: int, start: int = start, window: int = window) -> tuple[int, int]:
            rhythms = {*(FIRST_RHYTHMS if window < FIRST else RHYTHMS), period}
            often = sum(rhythm * seen[rhythm][(start + position) % rhythm] for rhythm in rhythms)
            return often, _hash(drawn.seed, period, window, position)

        candidates = drawn._candidates(period, window) if window else [0]
        chosen = min(candidates, key=rank) if len(candidates) > 1 else candidates[0]
        positions.append(chosen)
        for rhythm, counts in seen.items():
            counts[(start + chosen) % rhythm] += 1
    return tuple(positions)


def _hash(seed: int, period: int, window: int, item: int) -> int:
    # The generators of the random module may differ from version to version of Python, and a resumed run must not.
    text = f"{seed}/{period}/{window}/{item}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
