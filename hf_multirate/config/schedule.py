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
class Schedule:
    """Group ``i`` is live, and gets a fresh gradient, at one step of every ``periods[i]``.

    The first ``initial_full_steps`` steps are full steps. The cycle starts after them with a gradient for every group,
    so no group is ever idle before its first gradient.

    Attributes:
        periods: Steps from one gradient to the next, for each group; with drawn turns their mean.
        initial_full_steps: Full steps at the start.
        turns: ``fixed`` puts the gradient at the first step of each period. ``drawn`` draws its position for each
            period, nested where periods divide each other: see `hf_multirate.config.drawn_positions`.
        seed: Seed of the drawn positions.

    >>> schedule = Schedule(periods=(1, 2), initial_full_steps=1)
    >>> [schedule.live(step) for step in range(5)]
    [(0, 1), (0, 1), (0,), (0, 1), (0,)]
    """

    periods: tuple[int, ...]
    initial_full_steps: int = 0
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

    def live(self, step: int) -> tuple[int, ...]:
        """Indices of the groups that get a gradient at ``step``, in the order of ``periods``."""
        position = step - self.initial_full_steps
        if position <= 0:
            return tuple(range(len(self.periods)))
        here = {period for period in self._periods if self._position(period, position // period) == position % period}
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
            counted = Counter(self.live(self.initial_full_steps + step) for step in range(COUNTED_STEPS))
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
        steps = (self.initial_full_steps + window * period + self._position(period, window) for window in count())
        return next(step for step in steps if self.live(step) == kind)

    def phase(self, step: int) -> int:
        """Position in the cycle; with drawn turns steps since the slowest group had a gradient. Full steps have 0."""
        if self.turns == "drawn":
            return self.steps_since_refresh(self.periods.index(max(self.periods)), step)
        return max(0, step - self.initial_full_steps) % self.cycle

    def samples(self, step: int) -> bool:
        """Whether ``step`` is one of about every second step, which suffice to estimate what gradients are worth.

        With fixed turns of periods that are powers of two, only groups of period 1 are live at the others.
        """
        if self.turns == "fixed":
            return self.phase(step) % 2 == 0
        more = len(self.live(step)) > self.periods.count(1)
        return more or _PAIRS.position(2, step // 2) == step % 2

    def last_refresh(self, group: int, step: int) -> int:
        """Number of the last gradient step of ``group`` up to ``step``, counted from 0; -1 before the first cycle."""
        if step < self.initial_full_steps:
            return -1
        window, position = divmod(step - self.initial_full_steps, self.periods[group])
        return window if position >= self._position(self.periods[group], window) else window - 1

    def step_length(self, group: int, step: int) -> int:
        """Steps that one step of ``group`` stands for where it makes the move of a whole period at once."""
        return 1 if step < self.initial_full_steps else self.periods[group]

    def steps_to_next_refresh(self, group: int, step: int) -> int:
        """Steps from ``step``, at which ``group`` is live, to its next gradient: 1 means no idle step between."""
        if step < self.initial_full_steps:
            return 1
        period = self.periods[group]
        window = (step - self.initial_full_steps) // period
        return period - self._position(period, window) + self._position(period, window + 1)

    def steps_since_refresh(self, group: int, step: int) -> int:
        """Steps from the last gradient of ``group`` to ``step``: 0 means that it is live."""
        period = self.periods[group]
        window, position = divmod(max(0, step - self.initial_full_steps), period)
        since = position - self._position(period, window)
        return since if since >= 0 else position + period - self._position(period, window - 1)

    @property
    def cycle(self) -> int:
        """Steps after which the numbers of gradients repeat: the least common multiple of the periods."""
        return math.lcm(*self.periods)


_PAIRS = DrawnPositions((2,))


@dataclass(frozen=True)
class Stages:
    """Schedules that follow each other, of which the last two are known: it answers as a `Schedule` does.

    ``pieces`` are pairs of a first step and a schedule; the last that begins at or before a step is that of the step.

    >>> stages = Stages(((0, Schedule((1, 2))),)).then(4, Schedule((1, 4), initial_full_steps=4))
    >>> [stages.live(step) for step in (2, 3, 4, 6)]
    [(0, 1), (0,), (0, 1), (0,)]
    """

    pieces: tuple[tuple[int, Schedule], ...]

    def then(self, start: int, schedule: Schedule) -> Stages:
        """The last of these, and ``schedule`` from ``start`` on."""
        return Stages((self.pieces[-1], (start, schedule)))

    def at(self, step: int) -> Schedule:
        """The schedule of ``step``."""
        start, schedule = self.pieces[-1]
        return schedule if step >= start else self.pieces[0][1]

    def live(self, step: int) -> tuple[int, ...]:
        """See `Schedule.live`."""
        return self.at(step).live(step)

    def full(self, step: int) -> bool:
        """See `Schedule.full`."""
        return self.at(step).full(step)

    def phase(self, step: int) -> int:
        """See `Schedule.phase`."""
        return self.at(step).phase(step)

    def steps_to_next_refresh(self, group: int, step: int) -> int:
        """See `Schedule.steps_to_next_refresh`."""
        return self.at(step).steps_to_next_refresh(group, step)

    def samples(self, step: int) -> bool:
        """See `Schedule.samples`."""
        return self.at(step).samples(step)

    def step_length(self, group: int, step: int) -> int:
        """See `Schedule.step_length`."""
        return self.at(step).step_length(group, step)

    def steps_since_refresh(self, group: int, step: int) -> int:
        """See `Schedule.steps_since_refresh`."""
        return self.at(step).steps_since_refresh(group, step)

    @property
    def initial_full_steps(self) -> int:
        """Steps before the cycle of the last schedule begins."""
        return self.pieces[-1][1].initial_full_steps

    @property
    def cycle(self) -> int:
        """Steps of the cycle of the last schedule."""
        return self.pieces[-1][1].cycle
