"""Which rate groups get a gradient at which optimizer step.

A schedule is a value and a step is a number: nothing is counted here, so there is nothing to
save, and a run that resumes at step 1003 is in the phase of step 1003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Group ``i`` is live, and gets a fresh gradient, at every ``periods[i]``-th step.

    The first ``initial_full_steps`` steps are full steps. The cycle starts behind them with a
    refresh of every group, so no group is ever idle before its first gradient.

    >>> schedule = Schedule(periods=(1, 2), initial_full_steps=1)
    >>> [schedule.live(step) for step in range(5)]
    [(0, 1), (0, 1), (0,), (0, 1), (0,)]
    """

    periods: tuple[int, ...]
    initial_full_steps: int = 0

    def live(self, step: int) -> tuple[int, ...]:
        """Indices of the groups that get a gradient at ``step``, in the order of ``periods``."""
        position = step - self.initial_full_steps
        return tuple(i for i, period in enumerate(self.periods) if position <= 0 or position % period == 0)

    def full(self, step: int) -> bool:
        """Whether every group gets a gradient at ``step``."""
        return len(self.live(step)) == len(self.periods)

    @property
    def lives(self) -> list[tuple[int, ...]]:
        """What is `live` at each step of a cycle, behind the initial full steps."""
        return [self.live(self.initial_full_steps + position) for position in range(self.cycle)]

    def phase(self, step: int) -> int:
        """Position in the cycle: 0 is a full step; every initial step is one."""
        return max(0, step - self.initial_full_steps) % self.cycle

    def steps_to_next_refresh(self, group: int, step: int) -> int:
        """Steps from ``step``, at which ``group`` is live, to its next gradient: 1 means no idle step between."""
        return 1 if step < self.initial_full_steps else self.periods[group]

    def steps_since_refresh(self, group: int, step: int) -> int:
        """Steps from the last gradient of ``group`` to ``step``: 0 means that it is live."""
        return max(0, step - self.initial_full_steps) % self.periods[group]

    @property
    def cycle(self) -> int:
        """Steps after which the pattern of live groups repeats: the least common multiple of the periods."""
        return math.lcm(*self.periods)


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
