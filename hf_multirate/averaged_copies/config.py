"""Which copy of the network takes the next step, and which are averaged after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from hf_multirate.config.drawn_positions import DrawnPositions
from hf_multirate.config.schedule import TURNS
from hf_multirate.config.validation import require_choice, require_int, require_items


MOMENTA = ("keep", "average", "reset")
BUFFERS = ("keep", "average")


@dataclass(frozen=True)
class CopiesConfig:
    """Copies of one network that train with different step sizes and are averaged where their times meet.

    Copy i takes steps ``periods[i]`` times as long as the learning rate, each on a minibatch of its own, so that it
    takes one step where the first copy takes ``periods[i]``. Vlaar & Leimkuhler, *Multirate Training of Neural
    Networks* (ICML 2022), copies on different time scales.

    Attributes:
        periods: Step sizes of the copies in units of the learning rate: 1, then each a multiple of the one before.
        momenta: What an average does to the state of the optimizer, which the paper leaves open: all go on from the
            mean (``average``), each copy has its own (``keep``), or all begin anew (``reset``).
        turns: Where a slow copy has its turn among those of the faster ones, before they are averaged: ``drawn``
            for each of its steps, so that it meets all of the data whatever the order, or ``fixed`` at the end.
        turns_seed: Seed of the drawn turns.
        buffers: Whether buffers such as the running statistics of batch norm are averaged as parameters are, or each
            copy has its own (``keep``).

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is of another type.
    """

    periods: Sequence[int] = (1, 25)
    momenta: str = "average"
    buffers: str = "average"
    turns: str = "drawn"
    turns_seed: int = 0

    def __post_init__(self) -> None:
        """Validate, and make values plain ones and ``periods`` a tuple."""
        items = require_items("periods of copies", self.periods, "a list of integers, as in (1, 25)")
        periods = tuple(require_int("each of the periods of copies", item) for item in items)
        object.__setattr__(self, "periods", periods)
        object.__setattr__(self, "momenta", require_choice("momenta of copies", self.momenta, MOMENTA))
        object.__setattr__(self, "buffers", require_choice("buffers of copies", self.buffers, BUFFERS))
        object.__setattr__(self, "turns", require_choice("turns of copies", self.turns, TURNS))
        object.__setattr__(self, "turns_seed", require_int("turns_seed of copies", self.turns_seed, least=0))
        if len(periods) == 1 or periods[:1] != (1,):
            raise ValueError(f"copies need two or more periods of which the first is 1, got {periods}.")
        for one, other in pairwise(periods):
            if other <= one or other % one:
                raise ValueError(
                    f"each period of the copies must be a larger multiple of the one before, got {periods}: otherwise "
                    "their times do not meet."
                )

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        values = {field.name: vars(self)[field.name] for field in fields(self)}
        return {**values, "periods": list(self.periods)}

    @property
    def cycle(self) -> int:
        """Steps, of any copy, from one average of all copies to the next."""
        return _turns(self.periods)

    def turn(self, step: int) -> tuple[int, tuple[int, ...]]:
        """The copy that takes optimizer step ``step``, and the copies that are averaged after it.

        Examples:
            >>> config = CopiesConfig((1, 2), turns="fixed")
            >>> [config.turn(step) for step in range(4)]
            [(0, ()), (0, ()), (1, (0, 1)), (0, ())]
        """
        return self._turn(len(self.periods) - 1, *divmod(step, self.cycle))

    def _turn(self, slowest: int, number: int, place: int) -> tuple[int, tuple[int, ...]]:
        """Turn ``place`` of interval ``number`` of a copy, in which it has one step and faster copies have more."""
        if slowest == 0:
            return 0, ()
        length = _turns(self.periods[: slowest + 1])
        own = self._place(length, number, slowest)
        inside = place - (place > own)
        parts = self.periods[slowest] // self.periods[slowest - 1]
        part, rest = divmod(inside, _turns(self.periods[:slowest]))
        copy, merged = (slowest, ()) if place == own else self._turn(slowest - 1, number * parts + part, rest)
        if place == length - 1:  # the end of the interval, where all of them meet
            return copy, tuple(range(slowest + 1))
        return copy, () if inside == length - 2 else merged

    def _place(self, length: int, number: int, copy: int) -> int:
        """Place of the step of ``copy`` among the ``length`` turns of its interval."""
        if self.turns == "fixed":
            return length - 1
        return DrawnPositions((length,), self.turns_seed + copy).position(length, number + 1)


def _turns(periods: Sequence[int]) -> int:
    """Turns in the interval of the slowest copy."""
    return sum(periods[-1] // period for period in periods)
