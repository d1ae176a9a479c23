"""Schedule: the rate groups that get a gradient at each optimizer step.

A schedule is a function of the step index and has no state. A run that resumes at step 1003 therefore continues with
the live groups of step 1003, and checkpoints need not store the schedule.
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
"""Number of steps over which kinds of steps are counted if periods do not divide each other: cycles may be long."""


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        index: Index of the step, counted from 0 and continued when a run resumes.
        live: Indices of the live rate groups, which get a gradient, in ascending order.
        full: Whether this is a full step, at which all groups are live.
        complete: Whether all groups with a period are live. In a stage with resting groups no step is full.
    """

    index: int
    live: tuple[int, ...]
    full: bool
    complete: bool


@dataclass(frozen=True)
class Schedule:
    """Schedule of gradients: group ``i`` is live at one of every ``periods[i]`` steps.

    All groups with a period are live at step 0, so that none of them is idle before its first gradient.

    Attributes:
        periods: Steps from one gradient of each group to the next; their mean if positions are drawn. A
            group with period 0 is live at no step.
        turns: Position of the gradient step within each period. ``fixed`` is the first step. ``drawn`` draws the
            position, see `hf_multirate.config.drawn_positions`.
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
        return tuple(sorted({period for period in self.periods if period}))

    @cached_property
    def _drawn(self) -> DrawnPositions:
        return DrawnPositions(self._periods, self.seed)

    def _position(self, period: int, window: int) -> int:
        """Position of the gradient step within a window of ``period`` steps."""
        return self._drawn.position(period, window) if self.turns == "drawn" else 0

    def at(self, step: int) -> Step:
        """The step with index ``step``."""
        live = self.live(step)
        return Step(step, live, len(live) == len(self.periods), len(live) == sum(map(bool, self.periods)))

    def live(self, step: int) -> tuple[int, ...]:
        """Indices of the groups that get a gradient at ``step``, in the order of ``periods``."""
        if step <= 0:
            return tuple(i for i, period in enumerate(self.periods) if period)
        live_periods = {period for period in self._periods if self._position(period, step // period) == step % period}
        return tuple(i for i, period in enumerate(self.periods) if period in live_periods)

    def full(self, step: int) -> bool:
        """Whether ``step`` is a full step."""
        return len(self.live(step)) == len(self.periods)

    @cached_property
    def kinds(self) -> dict[tuple[int, ...], int]:
        """Kinds of steps: live groups -> number of such steps in a cycle; full steps first.

        If positions are drawn and periods do not divide each other, the first `COUNTED_STEPS` steps are counted.
        """
        nested = all(longer % shorter == 0 for shorter, longer in pairwise(self._periods))
        multiples = self._multiples() if nested or self.turns == "fixed" else None
        if multiples is None:
            counted = Counter(self.live(step) for step in range(COUNTED_STEPS))
            return dict(sorted(counted.items(), key=lambda item: -len(item[0])))
        step_counts: dict[int, int] = {}  # multiple -> steps that no larger multiple divides
        for multiple in sorted(multiples, reverse=True):
            of_larger_multiples = sum(steps for other, steps in step_counts.items() if other % multiple == 0)
            step_counts[multiple] = self.cycle // multiple - of_larger_multiples
        return {
            tuple(i for i, period in enumerate(self.periods) if period and multiple % period == 0): steps
            for multiple, steps in step_counts.items()
            if steps
        }

    def _multiples(self) -> set[int] | None:
        """Least common multiples of all sets of periods, one for each kind of step; None if there are too many."""
        multiples = {1}
        for period in self._periods:
            multiples |= {math.lcm(multiple, period) for multiple in multiples}
            if len(multiples) > COUNTED_STEPS:
                return None
        return multiples

    def example(self, kind: tuple[int, ...]) -> int:
        """Index of the first step of ``kind``, which is one of `kinds`."""
        period = max((self.periods[i] for i in kind), default=1)
        steps = (window * period + self._position(period, window) for window in count())
        return next(step for step in steps if self.live(step) == kind)

    def phase(self, step: int) -> int:
        """Position of ``step`` in its cycle; for drawn positions, steps since the slowest group had a refresh."""
        if self.turns == "drawn":
            return self.steps_since_refresh(self.periods.index(max(self.periods)), step)
        return step % self.cycle

    def last_refresh(self, group: int, step: int) -> int:
        """Number of the last refresh of ``group`` up to ``step``, counted from 0."""
        window, position = divmod(step, self.periods[group])
        return window if position >= self._position(self.periods[group], window) else window - 1

    def steps_to_next_refresh(self, group: int, step: int) -> int:
        """Steps from ``step``, at which ``group`` is live, to its next refresh; 1 if it is live at the next step."""
        period = self.periods[group]
        window = step // period
        return period - self._position(period, window) + self._position(period, window + 1)

    def steps_since_refresh(self, group: int, step: int) -> int:
        """Steps from the last refresh of ``group`` to ``step``; 0 if the group is live."""
        period = self.periods[group]
        window, position = divmod(max(0, step), period)
        since = position - self._position(period, window)
        return since if since >= 0 else position + period - self._position(period, window - 1)

    @property
    def cycle(self) -> int:
        """Steps of a cycle: the least common multiple of the periods."""
        return math.lcm(*self._periods)
