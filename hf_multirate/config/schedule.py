"""Which rate groups get a gradient at which optimizer step.

A schedule is a value and a step is a number: nothing is counted here, so there is nothing to
save, and a run that resumes at step 1003 is in the phase of step 1003.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import count, pairwise

from hf_multirate.config.drawn_positions import DrawnPositions


TURNS = ("drawn", "fixed")

COUNTED_STEPS = 4096
"""Steps in which kinds of steps are counted where periods do not divide each other, since cycles may be very long."""


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        index: Its number, counted from 0 and going on when a run resumes.
        live: Indices of the rate groups that get a gradient, in their order.
        full: Whether these are all groups.
    """

    index: int
    live: tuple[int, ...]
    full: bool


@dataclass(frozen=True)
class Schedule:
    """Group ``i`` is live, and gets a fresh gradient, at one step of every ``periods[i]``.

    Step 0 is a full step, so no group is ever idle before its first gradient.

    Attributes:
        periods: Steps from one gradient to the next, for each group; with drawn turns their mean.
        turns: ``fixed`` puts the gradient at the first step of each period. ``drawn`` draws its position for each
            period, nested where periods divide each other: see `hf_multirate.config.drawn_positions`.
        seed: Seed of the drawn positions.

    >>> schedule = Schedule(periods=(1, 2))
    >>> [schedule.live(step) for step in range(4)]
    [(0, 1), (0,), (0, 1), (0,)]
    """

    periods: tuple[int, ...]
    turns: str = "fixed"
    seed: int = 0

    @cached_property
    def _periods(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.periods)))

    @cached_property
    def _drawn(self) -> DrawnPositions:
        return DrawnPositions(self._periods, self.seed)

    def _position(self, period: int, window: int) -> int:
        """Position of the gradient step within a window of ``period`` steps."""
        return self._drawn.position(period, window) if self.turns == "drawn" else 0

    def at(self, step: int) -> Step:
        """The step with the index ``step``."""
        live = self.live(step)
        return Step(step, live, len(live) == len(self.periods))

    def live(self, step: int) -> tuple[int, ...]:
        """Indices of the groups that get a gradient at ``step``, in the order of ``periods``."""
        if step <= 0:
            return tuple(range(len(self.periods)))
        here = {period for period in self._periods if self._position(period, step // period) == step % period}
        return tuple(i for i, period in enumerate(self.periods) if period in here)

    def full(self, step: int) -> bool:
        """Whether every group gets a gradient at ``step``."""
        return len(self.live(step)) == len(self.periods)

    @cached_property
    def kinds(self) -> dict[tuple[int, ...], int]:
        """Live groups -> how many steps of a cycle are of this kind; full steps first.

        Drawn positions of periods that do not divide each other are counted in the first `COUNTED_STEPS` steps.
        """
        nested = all(longer % shorter == 0 for shorter, longer in pairwise(self._periods))
        multiples = self._multiples() if nested or self.turns == "fixed" else None
        if multiples is None:
            counted = Counter(self.live(step) for step in range(COUNTED_STEPS))
            return dict(sorted(counted.items(), key=lambda item: -len(item[0])))
        exactly: dict[int, int] = {}
        for multiple in sorted(multiples, reverse=True):
            rarer = sum(steps for other, steps in exactly.items() if other % multiple == 0)
            exactly[multiple] = self.cycle // multiple - rarer
        return {
            tuple(i for i, period in enumerate(self.periods) if multiple % period == 0): steps
            for multiple, steps in exactly.items()
            if steps
        }

    def _multiples(self) -> set[int] | None:
        """Common multiples of any of the periods, of which each is a kind of step; None if there are too many."""
        multiples = {1}
        for period in self._periods:
            multiples |= {math.lcm(multiple, period) for multiple in multiples}
            if len(multiples) > COUNTED_STEPS:
                return None
        return multiples

    def example(self, kind: tuple[int, ...]) -> int:
        """The first step at which the groups of ``kind``, one of `kinds`, and no others are live."""
        period = max((self.periods[i] for i in kind), default=1)
        steps = (window * period + self._position(period, window) for window in count())
        return next(step for step in steps if self.live(step) == kind)

    def phase(self, step: int) -> int:
        """Position in the cycle; with drawn turns steps since the slowest group had a gradient. Full steps have 0."""
        if self.turns == "drawn":
            return self.steps_since_refresh(self.periods.index(max(self.periods)), step)
        return step % self.cycle

    def last_refresh(self, group: int, step: int) -> int:
        """Number of the last gradient step of ``group`` up to ``step``, counted from 0."""
        window, position = divmod(step, self.periods[group])
        return window if position >= self._position(self.periods[group], window) else window - 1

    def steps_to_next_refresh(self, group: int, step: int) -> int:
        """Steps from ``step``, at which ``group`` is live, to its next gradient: 1 means no idle step between."""
        period = self.periods[group]
        window = step // period
        return period - self._position(period, window) + self._position(period, window + 1)

    def steps_since_refresh(self, group: int, step: int) -> int:
        """Steps from the last gradient of ``group`` to ``step``: 0 means that it is live."""
        period = self.periods[group]
        window, position = divmod(max(0, step), period)
        since = position - self._position(period, window)
        return since if since >= 0 else position + period - self._position(period, window - 1)

    @property
    def cycle(self) -> int:
        """Steps after which the numbers of gradients repeat: the least common multiple of the periods."""
        return math.lcm(*self.periods)
