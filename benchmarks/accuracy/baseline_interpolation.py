"""Accuracy by time and time by accuracy, and the baseline between its runs of several lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from benchmarks.accuracy.machine_correction import Runs
from benchmarks.accuracy.methods import is_baseline
from benchmarks.accuracy.results import Result


def seconds(runs: Iterable[Result]) -> float:
    """Process seconds, which are the same for all seeds: see `machine_correction.undisturbed`."""
    return fmean(run["process_seconds"] for run in runs)


def metric(runs: Iterable[Result]) -> float:
    """Mean accuracy on test rows."""
    return fmean(run["test_metric"] for run in runs)


def baseline_by_time(runs: Runs, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Mean seconds and accuracy of the baseline with schedules of several lengths, the shortest first.

    A run that is no better than a shorter one, over all its seeds, is left out: the shorter one would be preferred.
    """
    by_time = sorted((seconds(by_seed.values()), name) for name, by_seed in runs.items() if is_baseline(name))
    kept: list[str] = []
    for _, name in by_time:
        if not kept or metric(runs[name].values()) > metric(runs[kept[-1]].values()):
            kept.append(name)
    chosen = [[runs[name][seed] for seed in seeds] for name in kept]
    return [(seconds(some), metric(some)) for some in chosen]


def in_time(points: Sequence[tuple[float, float]], time: float) -> float | None:
    """Accuracy between neighbouring ``points`` of seconds and accuracy; None before the first of them."""
    times, values = zip(*points, strict=True)
    return None if time < 0.98 * times[0] else float(np.interp(time, times, values))


def ahead(runs: Runs, method: str) -> tuple[float, float] | None:
    """Accuracy of ``method`` less that of the baseline in its time, seed by seed: the mean and its standard error.

    None where it takes less time than the shortest baseline run.

    Raises:
        ValueError: it has a seed that the baseline does not have.
    """
    missing = {
        seed for name, by_seed in runs.items() if is_baseline(name) for seed in runs[method].keys() - by_seed.keys()
    }
    if missing:
        raise ValueError(f"{method!r} has the seeds {sorted(missing)}, the baseline does not: run it for them.")
    gaps = []
    for seed, run in runs[method].items():
        baseline = in_time(baseline_by_time(runs, [seed]), run["process_seconds"])
        if baseline is None:
            return None
        gaps.append(run["test_metric"] - baseline)
    return with_error(gaps)


def with_error(gaps: Sequence[float]) -> tuple[float, float]:
    """Mean of differences, and its standard error, which is not a number for a single one."""
    return fmean(gaps), float(np.std(gaps, ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else float("nan")


def at(run: Result, time: float) -> float | None:
    """The last accuracy of the curve of ``run`` at or before ``time``; None if there is none."""
    times, values = _points(run)
    before = [value for when, value in zip(times, values, strict=True) if when <= time * 1.001]
    return before[-1] if before else None


def time_to(run: Result, level: float) -> float | None:
    """Seconds until the curve of ``run`` is at ``level``, between evaluations on a straight line; None if never."""
    times, values = _points(run)
    for i, (when, value) in enumerate(zip(times, values, strict=True)):
        if value >= level:
            if i == 0:
                return when
            share = (level - values[i - 1]) / (value - values[i - 1])
            return times[i - 1] + share * (when - times[i - 1])
    return None


def _points(run: Result) -> tuple[list[float], list[float]]:
    return [p["process_seconds"] for p in run["curve"]], [p["metric"] for p in run["curve"]]
