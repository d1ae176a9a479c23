"""How long full and fast-only steps take, and the speed-up that follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean


class Telemetry:
    """Wall-clock seconds of every step that was really applied, apart for full and fast-only steps.

    A step is timed from the start of its first micro-batch to the end of ``optimizer.step()``. On an
    accelerator the clock does not wait for the device: single times mean little there, the mean over many
    steps is right as long as the host waits for the device once a step, as Trainer does to look at the loss.

    Args:
        speedup_predicted: What the cost model promises; repeated in the summary beside what was measured.
        clock: Returns seconds.
    """

    def __init__(self, speedup_predicted: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.speedup_predicted = speedup_predicted
        self._clock = clock
        self._started = 0.0
        self._seconds: dict[bool, list[float]] = {True: [], False: []}

    def start(self) -> None:
        """The first micro-batch of a step begins."""
        self._started = self._clock()

    def stop(self, *, full: bool) -> None:
        """The optimizer has applied a step at which every group was live (``full``), or not."""
        self._seconds[full].append(self._clock() - self._started)

    def _mean(self, *, full: bool) -> float | None:
        seconds = self._seconds[full]
        # The first step of a kind allocates memory and compiles.
        counted = seconds[1:] or seconds
        return fmean(counted) if counted else None

    def summary(self) -> dict[str, float | int | None]:
        """Numbers of steps, mean seconds of a step by kind, speed-up predicted and realised.

        ``speedup_realised`` is the time that the same number of steps would have taken had all been full ones,
        over the time they took; 1.0 without fast-only steps, None before the first full step.
        """
        full_steps, fast_steps = len(self._seconds[True]), len(self._seconds[False])
        full, fast = self._mean(full=True), self._mean(full=False)
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
            "speedup_realised": realised,
        }
