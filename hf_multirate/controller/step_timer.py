"""Time of full and fast steps, and the speed-up that follows."""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_multirate.controller.step_span import StepSpan


@dataclass
class _Kind:
    """Sums over the steps of one kind.

    Attributes:
        number: Number of steps.
        first: Seconds of the first step.
        seconds: Seconds of all steps.
        predicted_cost: Sum of the predicted costs, as shares of a step of standard training.
    """

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
    """Seconds of applied steps, separately for full and fast steps.

    A step is timed from the start of its first micro-batch to the end of ``optimizer.step()``. On a CUDA device, the
    device does so itself, see `hf_multirate.controller.step_span`; a step counts once it has ended there. Elsewhere
    it is the time of the host, which is that of the device only on a CPU.

    Args:
        speedup_predicted: Speed-up predicted by the cost model, repeated in the summary.
        clock: Returns seconds.
        full_cost: Predicted cost of a full step, as a share of a step of standard training. It is below 1 if some
            parameters never get a gradient. No step of the run is one of standard training then, and the measured
            speed-ups are None.
        span: Begins the time of a step on a device; None to read ``clock``.
    """

    def __init__(
        self,
        speedup_predicted: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
        full_cost: float = 1.0,
        span: Callable[[], StepSpan] | None = None,
    ) -> None:
        self.speedup_predicted = speedup_predicted
        self.full_cost = full_cost
        self._begin_span = span
        self._span: StepSpan | None = None
        self._unread: deque[tuple[StepSpan, bool, float]] = deque()
        """Steps that may not have ended on the device: their time, whether they are full, and predicted cost."""
        # Nine bytes per step, for the record of the run.
        self._seconds, self._full = array("d"), bytearray()
        self._outside: dict[str, float] = {}
        self._since: dict[str, float] = {}
        """Start time of the present activity outside of steps, by purpose; at most one entry."""
        self._clock = clock
        self._begun: float | None = None
        self._started = 0.0
        self._elapsed: float | None = None
        self._kinds = {True: _Kind(), False: _Kind()}

    def start(self) -> None:
        """Start timing a step, at its first micro-batch."""
        self._started = self._clock()
        self._begun = self._started if self._begun is None else self._begun
        self._span = None if self._begin_span is None else self._begin_span()

    def stop(self, *, full: bool, predicted_cost: float = 1.0) -> None:
        """Stop timing a step, after the optimizer has applied it.

        Args:
            full: Whether it was a full step.
            predicted_cost: Predicted cost as a share of a step of standard training.
        """
        span, self._span = self._span, None
        if span is None:
            self._add(self._clock() - self._started, full, predicted_cost)
            return
        span.end()
        self._unread.append((span, full, predicted_cost))
        self._read()

    def _add(self, seconds: float, full: bool, predicted_cost: float) -> None:
        self._seconds.append(seconds)
        self._full.append(full)
        self._kinds[full].add(seconds, predicted_cost)

    def _read(self, *, wait: bool = False) -> dict[bool, _Kind]:
        """Add the steps that have ended on the device; with ``wait``, all steps. Returns the sums by kind."""
        while self._unread:
            span, full, predicted_cost = self._unread[0]
            seconds = span.seconds(wait=wait)
            if seconds is None:
                break
            self._unread.popleft()
            self._add(seconds, full, predicted_cost)
        return self._kinds

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, without the step that is running on the device."""
        self._read()
        return vars(self) | {"_unread": deque(), "_span": None}

    @property
    def seconds(self) -> Sequence[float]:
        """Seconds of each step. Waits for the device."""
        self._read(wait=True)
        return self._seconds

    @property
    def full(self) -> Sequence[int]:
        """Whether each step was a full step, as 0 or 1. Waits for the device."""
        self._read(wait=True)
        return self._full

    @contextmanager
    def outside_step(self, purpose: str) -> Iterator[None]:
        """A context for activities outside of steps. Time before the first step is not counted.

        Args:
            purpose: ``"data"`` or ``"evaluation"``.
        """
        if self._begun is not None:
            self._since[purpose] = self._clock()
        try:
            yield
        finally:
            self._outside = self.outside_seconds
            self._since.clear()

    @property
    def outside_seconds(self) -> dict[str, float]:
        """Purpose -> seconds outside of steps, the present activity included."""
        return self._outside | {
            purpose: self._outside.get(purpose, 0.0) + self._clock() - start for purpose, start in self._since.items()
        }

    @property
    def elapsed(self) -> float:
        """Seconds from the start of the first step until now, or until `finish`."""
        if self._elapsed is not None:
            return self._elapsed
        return 0.0 if self._begun is None else self._clock() - self._begun

    def finish(self) -> None:
        """Stop the clock of `elapsed` at the end of training."""
        self._read(wait=True)
        self._elapsed = self.elapsed

    @property
    def in_steps(self) -> float:
        """Total seconds of all steps."""
        return sum(kind.seconds for kind in self._read().values())

    def mean(self, *, full: bool) -> float | None:
        """Mean seconds of full or fast steps; None without such a step."""
        kind = self._read()[full]
        if kind.number <= 1:
            return kind.first if kind.number else None
        # The first step of a kind is left out, because it allocates memory and compiles.
        return (kind.seconds - kind.first) / (kind.number - 1)

    def counted(self, *, full: bool) -> int:
        """Number of full or fast steps."""
        return self._read()[full].number

    def predicted_cost(self, *, full: bool) -> float:
        """Mean predicted cost of full or fast steps so far, as a share of a step of standard training."""
        kind = self._read()[full]
        return kind.predicted_cost / kind.number if kind.number else self.full_cost

    @property
    def predicted_so_far(self) -> float:
        """Speed-up that the cost model predicts for the steps taken so far."""
        kinds = self._read().values()
        cost = sum(kind.predicted_cost for kind in kinds)
        return sum(kind.number for kind in kinds) / cost if cost else 1.0

    def summary(self) -> dict[str, float | int | None]:
        """Numbers of steps, mean seconds per step by kind, and speed-ups relative to full steps.

        ``speedup_of_steps`` is the time of the same number of full steps divided by the time of the steps. ``speedup``
        is the same ratio for the whole run so far, with data loading and evaluation. Both are 1.0 without fast steps,
        and None before the first full step or if some parameters never get a gradient. Waits for the device, so that
        all steps count.
        """
        self._read(wait=True)
        full_steps, fast_steps = self.counted(full=True), self.counted(full=False)
        full, fast = self.mean(full=True), self.mean(full=False)
        realised = None
        if full is not None and self.full_cost == 1.0:
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
        """Speed-up of ``elapsed`` seconds, activities outside of steps included.

        None before the first full step, and if some parameters never get a gradient.
        """
        return self.over_full_steps(elapsed) if self.full_cost == 1.0 else None

    def over_full_steps(self, elapsed: float) -> float | None:
        """As `speedup_of_run`, over full steps of this run, with or without parameters that never get a gradient."""
        full, fast = self.mean(full=True), self.mean(full=False)
        if full is None or not elapsed:
            return None
        saved = self.counted(full=False) * (full - (fast or 0.0))
        return (elapsed + saved) / elapsed


TOLERANCE = 0.9
"""Share of the predicted speed-up below which a run counts as too slow."""

MIN_STEPS = 5
"""Number of full steps, and of fast steps, that a reliable speed-up needs."""

MIN_SECONDS = 30.0
"""Length of a run before the speed-up is compared with its prediction."""

MIN_SHARE = 0.05
"""Share of the time from which an activity outside of steps counts as a cause."""

REMEDIES = {
    "data": "data loading (set dataloader_num_workers, or prepare the data beforehand)",
    "evaluation": "evaluation (evaluate less often, or on fewer rows)",
    "other": "work between steps: saving, logging, callbacks",
}


def has_enough_steps(timer: StepTimer) -> bool:
    """Whether there are enough full and fast steps for a reliable speed-up."""
    return all(timer.counted(full=full) >= MIN_STEPS for full in (True, False))


def slow_run_message(timer: StepTimer) -> str | None:
    """A message on why a run has less than 90 % of its predicted speed-up.

    Returns:
        The message. None if the run is fast enough or no cause is known, and before 5 steps of each kind and 30 s.
    """
    elapsed = timer.elapsed
    if not has_enough_steps(timer) or elapsed < MIN_SECONDS:
        return None
    predicted, realised = timer.predicted_so_far * timer.full_cost, timer.over_full_steps(elapsed)
    if realised is None or realised >= TOLERANCE * predicted:
        return None
    causes = _causes_in_steps(timer) + _causes_outside_steps(timer, elapsed)
    if not causes:
        return None  # the user could not change anything
    return f"the speed-up so far is {realised:.2f}, predicted {predicted:.2f}. Causes: {'; '.join(causes)}."


def _causes_in_steps(timer: StepTimer) -> list[str]:
    full, fast = timer.mean(full=True), timer.mean(full=False)
    assert full  # there are steps of both kinds
    assert fast
    share, predicted = fast / full, timer.predicted_cost(full=False) / timer.full_cost
    comparison = f"a fast step takes {share:.2f} of a full step, predicted {predicted:.2f}"
    if share > TOLERANCE and predicted < TOLERANCE * share:
        return [
            f"boundary not reached: {comparison}, so backward seems to run below the fast groups (see "
            "trainer.multirate.describe())"
        ]
    if share * TOLERANCE > predicted:
        return [
            f"small batch: {comparison}, because the optimizer, drift and Python take as long as at a full step (try "
            "a larger batch, or fewer drift_steps)"
        ]
    return []


def _causes_outside_steps(timer: StepTimer, elapsed: float) -> list[str]:
    seconds = dict(timer.outside_seconds)
    seconds["other"] = elapsed - sum(seconds.values()) - timer.in_steps
    shares = sorted(((value / elapsed, purpose) for purpose, value in seconds.items()), reverse=True)
    return [f"{share:.0%} of the time goes into {REMEDIES[name]}" for share, name in shares if share >= MIN_SHARE]
