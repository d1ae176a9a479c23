"""Settings of averaged copies: which copy takes the next step, and which copies are averaged after it."""

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
    """Settings for copies of one network that train with different step sizes and are averaged at common times.

    The step size of copy i is ``periods[i]`` times the learning rate. Each step uses its own minibatch. Copy i takes
    one step while the first copy takes ``periods[i]`` steps. Source: copies on different time scales in Vlaar &
    Leimkuhler, *Multirate Training of Neural Networks* (ICML 2022).

    Attributes:
        periods: Step sizes of the copies in units of the learning rate. The first is 1, each other is a larger
            multiple of the one before.
        momenta: Effect of an average on the optimizer state, which the paper does not specify. ``average``: all copies
            get the mean. ``keep``: each copy keeps its state. ``reset``: the state is deleted.
        turns: Position of the steps of a slow copy among those of the faster copies. ``drawn``: at random, so that the
            order of the data does not matter. ``fixed``: last, before the average.
        turns_seed: Seed of the drawn positions.
        buffers: ``average``: buffers, such as the running statistics of batch norm, are averaged like parameters.
            ``keep``: each copy keeps its buffers.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value has the wrong type.
    """

    periods: Sequence[int] = (1, 25)
    momenta: str = "average"
    buffers: str = "average"
    turns: str = "drawn"
    turns_seed: int = 0

    def __post_init__(self) -> None:
        """Validate the values and convert them to plain Python values, ``periods`` to a tuple."""
        items = require_items("periods of copies", self.periods, "a list of integers, as in (1, 25)")
        periods = tuple(require_int("each of the periods of copies", item) for item in items)
        object.__setattr__(self, "periods", periods)
        object.__setattr__(self, "momenta", require_choice("momenta of copies", self.momenta, MOMENTA))
        object.__setattr__(self, "buffers", require_choice("buffers of copies", self.buffers, BUFFERS))
        object.__setattr__(self, "turns", require_choice("turns of copies", self.turns, TURNS))
        object.__setattr__(self, "turns_seed", require_int("turns_seed of copies", self.turns_seed, least=0))
        if len(periods) == 1 or periods[:1] != (1,):
            raise ValueError(f"copies need two or more periods of which the first is 1, got {periods}.")
        for shorter, longer in pairwise(periods):
            if longer <= shorter or longer % shorter:
                raise ValueError(
                    f"each period of the copies must be a larger multiple of the one before, got {periods}. Otherwise "
                    "the copies have no common times at which they could be averaged."
                )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a dictionary of JSON values."""
        values = {field.name: vars(self)[field.name] for field in fields(self)}
        return {**values, "periods": list(self.periods)}

    @property
    def cycle(self) -> int:
        """Number of optimizer steps, of all copies together, from one average of all copies to the next."""
        return _steps_per_interval(self.periods)

    def turn(self, step: int) -> tuple[int, tuple[int, ...]]:
        """The index of the copy that takes optimizer step ``step``, and the copies that are averaged after the step.

        Examples:
            >>> config = CopiesConfig((1, 2), turns="fixed")
            >>> [config.turn(step) for step in range(4)]
            [(0, ()), (0, ()), (1, (0, 1)), (0, ())]
        """
        return self._turn(len(self.periods) - 1, *divmod(step, self.cycle))

    def _turn(self, slowest: int, number: int, place: int) -> tuple[int, tuple[int, ...]]:
        """As `turn`, for one interval of the copy ``slowest``, in which it takes one step and faster copies take more.

        Args:
            slowest: Index of the slowest copy of the interval.
            number: Number of the interval.
            place: Position of the step in the interval.
        """
        if slowest == 0:
            return 0, ()
        length = _steps_per_interval(self.periods[: slowest + 1])
        slow_place = self._place(length, number, slowest)
        place_of_faster = place - (place > slow_place)
        parts = self.periods[slowest] // self.periods[slowest - 1]
        part, rest = divmod(place_of_faster, _steps_per_interval(self.periods[:slowest]))
        copy, merged = (slowest, ()) if place == slow_place else self._turn(slowest - 1, number * parts + part, rest)
        if place == length - 1:  # all copies of the interval have reached the same time
            return copy, tuple(range(slowest + 1))
        return copy, () if place_of_faster == length - 2 else merged

    def _place(self, length: int, number: int, copy: int) -> int:
        """Position of the step of ``copy`` among the ``length`` steps of its interval."""
        if self.turns == "fixed":
            return length - 1
        return DrawnPositions((length,), self.turns_seed + copy).position(length, number + 1)


def _steps_per_interval(periods: Sequence[int]) -> int:
    """Number of steps of all copies in one interval of the slowest copy."""
    return sum(periods[-1] // period for period in periods)
