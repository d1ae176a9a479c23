"""How long full and fast-only steps take, and the speed-up that follows."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class _Kind:
    """Sums over the steps of one kind."""

    number: int = 0
    first: float = 0.0
    seconds: float = 0.0
    predicted_cost: float = 0.0

    def add(self, seconds: float, predicted_cost: float) -> None:
        self.first = seconds if self.number == 0 else self.first
        self.number += 1
        self.seconds += seconds
        self.predicted_cost += predicted_cost


class StepTimer:
    """Wall-clock seconds of every step that was really applied, apart for full and fast-only steps.

    A step is timed from the start of its first micro-batch to the end of ``optimizer.step()``. On an
    accelerator the clock does not wait for the device: single times mean little there, the mean over many
    steps is right as long as the host waits for the device once a step, as Trainer does to look at the loss.

    Args:
        speedup_predicted: What the cost model promises; repeated in the summary beside what was measured.
        clock: Returns seconds.
    """

    def __init__(
        self,
        speedup_predicted: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.speedup_predicted = speedup_predicted
        self.seconds, self.full = array("d"), bytearray()
        """Seconds of each step, and whether it was a full one: nine bytes a step, which the record of a run needs."""
        self._aside: dict[str, float] = {}
        self._since: dict[str, float] = {}
        """What goes on right now, and when it began: one thing at a time."""
        self._clock = clock
        self._begun: float | None = None
        self._started = 0.0
        self._elapsed: float | None = None
        self._kinds = {True: _Kind(), False: _Kind()}

    def start(self) -> None:
        """The first micro-batch of a step begins."""
        self._started = self._clock()
        self._begun = self._started if self._begun is None else self._begun

    def stop(self, *, full: bool, predicted_cost: float = 1.0) -> None:
        """The optimizer has applied a step at which every group was live (``full``), or not.

        ``predicted_cost`` is its share of a full step.
        """
        seconds = self._clock() - self._started
        self.seconds.append(seconds)
        self.full.append(full)
        self._kinds[full].add(seconds, predicted_cost)

    @contextmanager
    def outside_step(self, purpose: str) -> Iterator[None]:
        """A context for what is no part of a step: ``"data"``, ``"evaluation"``. Before the first step it is free."""
        if self._begun is not None:
            self._since[purpose] = self._clock()
        try:
            yield
        finally:
            self._aside = self.outside_seconds
            self._since.clear()

    @property
    def outside_seconds(self) -> dict[str, float]:
        """Seconds that went into something else, by what it was, up to now."""
        return self._aside | {
            purpose: self._aside.get(purpose, 0.0) + self._clock() - start for purpose, start in self._since.items()
        }

    @property
    def elapsed(self) -> float:
        """Seconds since the first step began, until `finish`."""
        if self._elapsed is not None:
            return self._elapsed
        return 0.0 if self._begun is None else self._clock() - self._begun

    def finish(self) -> None:
        """Stop the clock of `elapsed`: training is over."""
        self._elapsed = self.elapsed

    @property
    def in_steps(self) -> float:
        """Seconds of all steps together."""
        return sum(kind.seconds for kind in self._kinds.values())

    def mean(self, *, full: bool) -> float | None:
        """Mean seconds of a step of this kind, or None."""
        kind = self._kinds[full]
        if kind.number <= 1:
            return kind.first if kind.number else None
        # The first step of a kind allocates memory and compiles.
        return (kind.seconds - kind.first) / (kind.number - 1)

    def counted(self, *, full: bool) -> int:
        """Number of steps of this kind."""
        return self._kinds[full].number

    def predicted_cost(self, *, full: bool) -> float:
        """Mean predicted cost of the steps of this kind that were taken, as a share of a full step."""
        kind = self._kinds[full]
        return kind.predicted_cost / kind.number if kind.number else 1.0

    @property
    def predicted_so_far(self) -> float:
        """Speed-up that the cost model promises for the steps taken so far."""
        cost = sum(kind.predicted_cost for kind in self._kinds.values())
        return sum(kind.number for kind in self._kinds.values()) / cost if cost else 1.0

    def summary(self) -> dict[str, float | int | None]:
        """Numbers of steps, mean seconds of a step by kind, and the speed-up over full steps only.

        ``speedup`` is that of the whole run so far, data loading and evaluation included, and ``speedup_of_steps``
        that of steps: the time that the same number of full steps would have taken, over the time they took. Both
        are 1.0 without fast steps, and None before the first full step.
        """
        full_steps, fast_steps = self.counted(full=True), self.counted(full=False)
        full, fast = self.mean(full=True), self.mean(full=False)
        realised = None
        if full is not None:
            spent = full_steps * full + fast_steps * (fast or 0.0)
            realised = (full_steps + fast_steps) * full / spent
        return {
            "full_steps": full_steps,
            "fast_steps": fast_steps,
            "seconds_full_step": full,
            "seconds_fast_step": fast,
            "speedup_predicted": self.speedup_predicted,
            "speedup": self.speedup_of_run(self.elapsed),
            "speedup_of_steps": realised,
        }

    def speedup_of_run(self, elapsed: float) -> float | None:
        """As ``speedup_of_steps``, for ``elapsed`` seconds in which other things were done too; None as there."""
        full, fast = self.mean(full=True), self.mean(full=False)
        if full is None or not elapsed:
            return None
        saved = self.counted(full=False) * (full - (fast or 0.0))
        return (elapsed + saved) / elapsed


ENOUGH = 0.9
"""Share of the predicted speed-up below which there is something to say."""

LEAST_OF_EACH = 5
"""Full steps, and fast steps, from which on a speed-up means something: the first of each kind is no measure."""

LEAST_SECONDS = 30.0
"""Of a run, before a shortfall is worth a message."""

NOTICED = 0.05
"""Share of the time from which on something else counts as a cause."""

REMEDIES = {
    "data": "data loading (more dataloader_num_workers, or data prepared beforehand)",
    "evaluation": "evaluation (fewer of them, or fewer rows)",
    "other": "what is done between steps: saving, logging, callbacks",
}


def enough(timer: StepTimer) -> bool:
    """Whether there are enough steps of both kinds for a speed-up to mean something."""
    return all(timer.counted(full=full) >= LEAST_OF_EACH for full in (True, False))


def shortfall(timer: StepTimer) -> str | None:
    """A message if the run realises less than nine tenths of the predicted speed-up and the cause is known, else None.

    It takes at least 5 steps of each kind and 30 seconds.
    """
    elapsed = timer.elapsed
    if not enough(timer) or elapsed < LEAST_SECONDS:
        return None
    predicted, realised = timer.predicted_so_far, timer.speedup_of_run(elapsed)
    if realised is None or realised >= ENOUGH * predicted:
        return None
    causes = _of_steps(timer) + _of_the_rest(timer, elapsed)
    if not causes:
        return None  # nothing that a user could change
    return f"the speed-up so far is {realised:.2f}, predicted {predicted:.2f}. Found: {'; '.join(causes)}."


def _of_steps(timer: StepTimer) -> list[str]:
    full, fast = timer.mean(full=True), timer.mean(full=False)
    assert full  # there are steps of both kinds
    assert fast
    share, predicted = fast / full, timer.predicted_cost(full=False)
    told = f"a fast-only step takes {share:.2f} of a full one, predicted {predicted:.2f}"
    if share > ENOUGH and predicted < ENOUGH * share:
        return [
            f"boundary not reached: {told}, so backward seems to run below the fast groups (see "
            "trainer.multirate.describe())"
        ]
    if share * ENOUGH > predicted:
        return [
            f"small batch: {told}, since the optimizer, drift and Python take as long as at a full step (try a larger "
            "batch, or fewer drift_steps)"
        ]
    return []


def _of_the_rest(timer: StepTimer, elapsed: float) -> list[str]:
    seconds = dict(timer.outside_seconds)
    seconds["other"] = elapsed - sum(seconds.values()) - timer.in_steps
    shares = sorted(((value / elapsed, what) for what, value in seconds.items()), reverse=True)
    return [f"{share:.0%} of the time goes into {REMEDIES[what]}" for share, what in shares if share >= NOTICED]
