"""Seconds of different days and processors, made comparable by baseline runs.

When a suite continues with another commit or on another processor, the baseline is run there once more, as a
*reference*. The speed-up of a method is then the one over its reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy.methods import is_baseline
from benchmarks.accuracy.results import Result
from benchmarks.machine import processor_of


Conditions = tuple[str, str]
"""A commit and a processor."""

Runs = dict[str, dict[int, Result]]
"""Method -> seed -> run."""


def conditions(run: Mapping[str, Any]) -> Conditions:
    """Those of a run."""
    return run["machine"]["commit"], processor_of(run["machine"])


def corrected(runs: Runs, references: Mapping[Conditions, float]) -> Runs:
    """The runs of one task with the seconds that they would have taken beside the baseline.

    Args:
        runs: Those of all methods.
        references: Seconds of the reference runs of the baseline.
    """
    baseline = runs.get("baseline")
    if not baseline:
        return {name: undisturbed(by_seed) for name, by_seed in runs.items()}
    own = fastest(baseline.values())
    beside = {
        name: {seed: run for seed, run in by_seed.items() if conditions(run) in own}
        for name, by_seed in runs.items()
        if is_baseline(name)
    }
    counted = _pace(beside, baseline) * max(run["steps"] for run in baseline.values())
    correction = Correction(own, counted, references)
    scaled = {
        name: {seed: _scaled(run, correction.factor(run)) for seed, run in by_seed.items()}
        for name, by_seed in runs.items()
    }
    return {
        name: undisturbed(by_seed, _pace(scaled, by_seed) if is_baseline(name) else None)
        for name, by_seed in scaled.items()
    }


def undisturbed(runs: Mapping[int, Result], pace: float | None = None) -> dict[int, Result]:
    """The runs of one method with the seconds of the fastest seed, to which their curves are scaled.

    All seeds do the same work, and other work of the machine only adds to it. The same holds for a step of the
    baseline: see `_pace`.

    Args:
        runs: By seed.
        pace: Seconds of a step, where they are known.
    """
    least = min(run["process_seconds"] for run in runs.values())
    times = {seed: least if pace is None else pace * run["steps"] for seed, run in runs.items()}
    return {seed: _scaled(run, times[seed] / run["process_seconds"]) for seed, run in runs.items()}


def fastest(runs: Iterable[Result]) -> dict[Conditions, float]:
    """The least seconds under each conditions."""
    found: dict[Conditions, float] = {}
    for run in runs:
        took = run["process_seconds"]
        found[conditions(run)] = min(took, found.get(conditions(run), took))
    return found


def reference_seconds(runs: Iterable[Result], *, allow_dirty: bool) -> dict[Conditions, float]:
    """Seconds of the reference runs of one task and length: the least of their seeds.

    Args:
        runs: All runs of the task and length.
        allow_dirty: Whether those of files that were not committed count too.
    """
    return fastest(run for run in runs if run["role"] == "reference" and (allow_dirty or not run["machine"]["dirty"]))


@dataclass(frozen=True)
class Correction:
    """Factors that turn seconds into those of the conditions of the shown baseline runs.

    Attributes:
        own: Seconds of the full baseline runs by conditions: the least of each.
        counted: Seconds with which the baseline counts in the end.
        references: Seconds of the baseline under other conditions.
    """

    own: Mapping[Conditions, float]
    counted: float
    references: Mapping[Conditions, float]

    def factor(self, run: Mapping[str, Any]) -> float:
        """The factor of ``run``: by its own conditions, or else by baseline runs of the same processor.

        Raises:
            ValueError: the baseline was never run on that processor.
        """
        at = conditions(run)
        if at in self.own:
            return min(self.own.values()) / self.own[at]
        if at in self.references:
            return self.counted / self.references[at]
        for known, whole in ((self.own, min(self.own.values())), (self.references, self.counted)):
            same = [took for (_, processor), took in known.items() if processor == at[1]]
            if same:
                return whole / min(same)
        raise ValueError(
            f"{run['method']!r} of {run['task']}, {run['length']}, was run on {at[1]!r}, the baseline was not: its "
            "seconds cannot be compared. Run a method of this task there again; the baseline is then run beside it."
        )


def _pace(runs: Runs, some: Mapping[int, Result]) -> float:
    """Seconds of a step of the baseline: the least of baseline runs that are no longer than ``some``.

    Their batches are the first ones of a longer run, and where they are sorted by length the longest.
    """
    longest = max(run["steps"] for run in some.values())
    baseline = [run for name, by_seed in runs.items() if is_baseline(name) for run in by_seed.values()]
    return min(run["process_seconds"] / run["steps"] for run in baseline if run["steps"] <= longest)


def _scaled(run: Result, share: float) -> Result:
    curve = [{**point, "process_seconds": share * point["process_seconds"]} for point in run["curve"]]
    return {**run, "curve": curve, "process_seconds": share * run["process_seconds"]}
