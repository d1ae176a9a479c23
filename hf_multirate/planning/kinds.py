"""The kinds of steps of a schedule, without going through its cycle."""

from __future__ import annotations

import math
from itertools import count

from hf_multirate.schedule import Schedule


Live = tuple[int, ...]
"""Indices of the groups that get a gradient."""

MOST_KINDS = 1024
"""Each kind of step is run: with more of them planning would not end."""


def kinds_of(schedule: Schedule) -> dict[Live, int]:
    """Each set of live groups, the full step first, and how many of a cycle's steps have it.

    >>> kinds_of(Schedule((1, 2, 3)))
    {(0, 1, 2): 1, (0, 2): 1, (0, 1): 2, (0,): 2}

    Raises:
        ValueError: there are more than `MOST_KINDS`.
    """
    cycle, multiples = schedule.cycle, {1}
    for period in set(schedule.periods):
        multiples |= {math.lcm(multiple, period) for multiple in multiples}
        if len(multiples) > MOST_KINDS:
            raise ValueError(
                f"the periods {sorted(set(schedule.periods))} make more than {MOST_KINDS} kinds of steps: give fewer "
                "of them, or each a multiple of the one before."
            )
    exactly: dict[int, int] = {}
    for multiple in sorted(multiples, reverse=True):
        rarer = sum(steps for other, steps in exactly.items() if other % multiple == 0)
        exactly[multiple] = cycle // multiple - rarer
    return {_live(schedule, multiple): steps for multiple, steps in exactly.items() if steps}


def _live(schedule: Schedule, position: int) -> Live:
    return tuple(i for i, period in enumerate(schedule.periods) if position % period == 0)


def step_of(schedule: Schedule, live: Live) -> int:
    """The first step behind the initial ones at which the groups of ``live``, and no others, get a gradient."""
    first = schedule.initial_full_steps
    likely = first + math.lcm(*(schedule.periods[i] for i in live))
    steps = [likely] if schedule.live(likely) == live else count(first)
    return next(step for step in steps if schedule.live(step) == live)
