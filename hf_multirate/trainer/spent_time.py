"""Seconds of a timed run, with those of evaluation and saving apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


PURPOSES = ("evaluation", "saving")


@dataclass(frozen=True)
class Reading:
    """Seconds since the start of a run, those before a restart included.

    Attributes:
        elapsed: All seconds.
        evaluation: Seconds of evaluation among them.
        saving: Seconds of saving among them.
        evaluations: Number of evaluations that have ended.
        savings: Number of checkpoints that were saved.
    """

    elapsed: float
    evaluation: float
    saving: float
    evaluations: float
    savings: float

    @property
    def training(self) -> float:
        """Seconds of all the rest: steps, data loading, logging."""
        return self.elapsed - self.evaluation - self.saving

    def counted(self, counts: str) -> float:
        """Seconds that count: see `hf_multirate.trainer.train_time.COUNTS`."""
        return self.elapsed if counts == "everything" else self.training

    def mean(self, purpose: str) -> float | None:
        """Mean seconds of an evaluation or a saving; None before the first one."""
        seconds, number = {
            "evaluation": (self.evaluation, self.evaluations),
            "saving": (self.saving, self.savings),
        }[purpose]
        return seconds / number if number else None


NOTHING = Reading(0.0, 0.0, 0.0, 0.0, 0.0)


class SpentTime:
    """A stopwatch that knows what the time was spent on.

    Args:
        clock: Returns seconds.
        before: The reading of an earlier part of the run, which counts.
        slowest: Replaces a reading by that of the slowest process; by default there is one process.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        before: Reading = NOTHING,
        slowest: Callable[[Reading], Reading] = lambda reading: reading,
    ) -> None:
        self.before = before
        self._clock, self._slowest = clock, slowest
        self._start = clock() - before.elapsed
        self._seconds = {"evaluation": before.evaluation, "saving": before.saving}
        self._numbers = {"evaluation": before.evaluations, "saving": before.savings}
        self._since: tuple[str, float] | None = None

    @contextmanager
    def spent_on(self, purpose: str) -> Iterator[None]:
        """A context for activities of one of `PURPOSES`; within another activity it changes nothing."""
        if self._since is not None:
            yield
            return
        self._since = (purpose, self._clock())
        try:
            yield
        finally:
            self._seconds[purpose] = self._of(purpose)
            self._numbers[purpose] += 1.0
            self._since = None

    def _of(self, purpose: str) -> float:
        since = self._since
        present = self._clock() - since[1] if since is not None and since[0] == purpose else 0.0
        return self._seconds[purpose] + present

    def read(self) -> Reading:
        """The seconds until now, of this process."""
        seconds = [self._of(purpose) for purpose in PURPOSES]
        return Reading(self._clock() - self._start, *seconds, *(self._numbers[purpose] for purpose in PURPOSES))

    def read_slowest(self) -> Reading:
        """The seconds until now of the slowest process. All processes have to call it."""
        return self._slowest(self.read())
