"""Which copy of the network takes the next step, and which are averaged after it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hf_multirate.validators import require_choice, require_int, require_items


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
        buffers: Whether buffers such as the running statistics of batch norm are averaged as parameters are, or each
            copy has its own (``keep``).

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is of another type.
    """

    periods: Sequence[int] = (1, 25)
    momenta: str = "average"
    buffers: str = "average"

    def __post_init__(self) -> None:
        """Validate, and make values plain ones and ``periods`` a tuple."""
        items = require_items("periods of copies", self.periods, "a list of integers, as in (1, 25)")
        periods = tuple(require_int("each of the periods of copies", item) for item in items)
        object.__setattr__(self, "periods", periods)
        object.__setattr__(self, "momenta", require_choice("momenta of copies", self.momenta, MOMENTA))
        object.__setattr__(self, "buffers", require_choice("buffers of copies", self.buffers, BUFFERS))
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
        return {"periods": list(self.periods), "momenta": self.momenta, "buffers": self.buffers}

    @property
    def cycle(self) -> int:
        """Steps, of any copy, from one average of all copies to the next."""
        return sum(self.periods[-1] // period for period in self.periods)

    def turn(self, step: int) -> tuple[int, tuple[int, ...]]:
        """The copy that takes optimizer step ``step``, and the copies that are averaged after it.

        At each moment the faster copies arrive first.

        >>> config = CopiesConfig((1, 2))
        >>> [config.turn(step) for step in range(4)]
        [(0, ()), (0, ()), (1, (0, 1)), (0, ())]
        """
        left = step % self.cycle
        # The moment at which more copies have arrived than steps were taken; a long period takes no longer to search.
        time = 1 + bisect_right(range(1, self.periods[-1] + 1), left, key=self._arrived)
        arriving = tuple(copy for copy, period in enumerate(self.periods) if time % period == 0)
        place = left - self._arrived(time - 1)
        last = place == len(arriving) - 1 and len(arriving) > 1
        return arriving[place], arriving if last else ()

    def _arrived(self, time: int) -> int:
        """Steps, of any copy, until ``time``."""
        return sum(time // period for period in self.periods)
