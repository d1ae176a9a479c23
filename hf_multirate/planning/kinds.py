"""The kinds of steps that planning runs."""

from __future__ import annotations

from hf_multirate.schedule import Schedule


Live = tuple[int, ...]
"""Indices of the groups that get a gradient."""

MOST_KINDS = 128
"""Each kind of step is run: with more of them planning would not end."""


def kinds_of(schedule: Schedule) -> dict[Live, int]:
    """Each set of live groups, the full step first, and how many of a cycle's steps have it.

    >>> kinds_of(Schedule((1, 2, 3)))
    {(0, 1, 2): 1, (0, 2): 1, (0, 1): 2, (0,): 2}

    Raises:
        ValueError: there are more than `MOST_KINDS`.
    """
    if len(schedule.kinds) > MOST_KINDS:
        raise ValueError(
            f"the periods {sorted(set(schedule.periods))} make more than {MOST_KINDS} kinds of steps: give fewer "
            "of them, or each a multiple of the one before."
        )
    return schedule.kinds
