"""What can be read off the runs of one task and length: accuracy by time, and time by accuracy."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sessions import Reference, Session, clocks, fastest, session


ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "suite"

Runs = dict[str, dict[int, dict[str, Any]]]
"""Contender -> seed -> result."""


def finals(folder: Path, *, dirty: bool = False) -> dict[tuple[str, str], Runs]:
    """Results at the chosen rates by task and length; runs at a rate that was chosen from a smaller grid are left out.

    Raises:
        ValueError: a result is of files that were not committed, and ``dirty`` does not allow it.
    """
    found: dict[tuple[str, str], Runs] = defaultdict(lambda: defaultdict(dict))
    tried = grids(folder)
    for path in sorted(folder.glob("*__final.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["dirty"] and not dirty:
            raise ValueError(f"{path} was measured on files that were not committed: run it again, or give --dirty.")
        spec = result["spec"]
        grid = tried[spec["task"], spec["length"], spec["contender"]]
        if spec["rate"] == best_rate(grid):
            found[spec["task"], spec["length"]][spec["contender"]][spec["seed"]] = result
    known = clocks(folder, dirty=dirty)
    return {key: comparable(runs, known.get(key, {})) for key, runs in found.items()}


def comparable(runs: Runs, known: Mapping[Session, float]) -> Runs:
    """The runs of one task with the seconds that they would have taken beside plain training: see `sessions`.

    Args:
        runs: Those of all contenders.
        known: Seconds of the clocks, by session.
    """
    plain = runs.get("plain")
    if not plain:
        return {name: undisturbed(some) for name, some in runs.items()}
    own = fastest(plain.values())
    beside = {
        name: {seed: run for seed, run in some.items() if session(run) in own} for name, some in _plain(runs).items()
    }
    counted = _pace(beside, plain) * max(run["steps"] for run in plain.values())
    reference = Reference(own, counted, known)
    found = {
        name: {seed: _scaled(run, reference.factor(run)) for seed, run in some.items()} for name, some in runs.items()
    }
    return {name: undisturbed(some, _pace(found, some) if is_plain(name) else None) for name, some in found.items()}


def _pace(runs: Runs, some: Mapping[int, dict[str, Any]]) -> float:
    """Seconds of a step of plain training: the least of runs that are no longer than ``some``.

    Their batches are the first ones of a longer run, and where they are sorted by length the longest.
    """
    longest = max(run["steps"] for run in some.values())
    plain = [run for by_seed in _plain(runs).values() for run in by_seed.values()]
    return min(run["process_seconds"] / run["steps"] for run in plain if run["steps"] <= longest)


def undisturbed(runs: Mapping[int, dict[str, Any]], pace: float | None = None) -> dict[int, dict[str, Any]]:
    """The runs of one contender with the seconds of the fastest seed, to which their curves are scaled.

    All seeds do the same work, and what else the machine does only adds to it. So it is with a step of plain training:
    see `_pace`.

    Args:
        runs: By seed.
        pace: Seconds of a step, where they are known.
    """
    least = min(run["process_seconds"] for run in runs.values())
    times = {seed: least if pace is None else pace * run["steps"] for seed, run in runs.items()}
    return {seed: _scaled(run, times[seed] / run["process_seconds"]) for seed, run in runs.items()}


def _scaled(run: dict[str, Any], share: float) -> dict[str, Any]:
    curve = [{**point, "process_seconds": share * point["process_seconds"]} for point in run["curve"]]
    return {**run, "curve": curve, "process_seconds": share * run["process_seconds"]}


def best_rate(grid: Mapping[float, float]) -> float:
    """The learning rate with the best accuracy on validation rows; of equal ones the lowest."""
    return min(grid, key=lambda rate: (-grid[rate], rate))


def grids(folder: Path) -> dict[tuple[str, str, str], dict[float, float]]:
    """Accuracy on validation rows by rate, of the trials of each task, length and contender."""
    found: dict[tuple[str, str, str], dict[float, float]] = defaultdict(dict)
    for path in sorted(folder.glob("*__trial.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        spec = result["spec"]
        found[spec["task"], spec["length"], spec["contender"]][spec["rate"]] = result["validation_metric"]
    return found


def seconds(runs: Iterable[dict[str, Any]]) -> float:
    """Process seconds, which are the same for all seeds: see `undisturbed`."""
    return fmean(run["process_seconds"] for run in runs)


def metric(runs: Iterable[dict[str, Any]]) -> float:
    """Mean accuracy on test rows."""
    return fmean(run["test_metric"] for run in runs)


def is_plain(contender: str) -> bool:
    """Whether it is plain training, of all steps or fewer."""
    return contender.split(maxsplit=1)[0] == "plain"


def _plain(runs: Runs) -> Runs:
    return {name: some for name, some in runs.items() if is_plain(name)}


def plain_by_time(runs: Runs, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Mean seconds and accuracy of plain training with schedules of several lengths, the shortest first.

    One that is no better than a shorter one, over all its seeds, is left out: who has that time would train for less.
    """
    plain = sorted((seconds(some.values()), name) for name, some in _plain(runs).items())
    kept: list[str] = []
    for _, name in plain:
        if not kept or metric(runs[name].values()) > metric(runs[kept[-1]].values()):
            kept.append(name)
    chosen = [[runs[name][seed] for seed in seeds] for name in kept]
    return [(seconds(some), metric(some)) for some in chosen]


def in_time(points: Sequence[tuple[float, float]], time: float) -> float | None:
    """Accuracy between neighbouring ``points`` of seconds and accuracy; None before the first of them."""
    times, values = zip(*points, strict=True)
    return None if time < 0.98 * times[0] else float(np.interp(time, times, values))


def ahead(runs: Runs, contender: str) -> tuple[float, float] | None:
    """Accuracy of ``contender`` less that of plain training in its time, seed by seed: the mean and its error.

    None where it takes less time than the shortest plain run.

    Raises:
        ValueError: it has a seed that plain training does not have.
    """
    alone = {seed for some in _plain(runs).values() for seed in runs[contender].keys() - some.keys()}
    if alone:
        raise ValueError(f"{contender!r} has the seeds {sorted(alone)}, plain training does not: run it for them.")
    gaps = []
    for seed, run in runs[contender].items():
        plain = in_time(plain_by_time(runs, [seed]), run["process_seconds"])
        if plain is None:
            return None
        gaps.append(run["test_metric"] - plain)
    error = float(np.std(gaps, ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else float("nan")
    return fmean(gaps), error


def _points(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    return [p["process_seconds"] for p in run["curve"]], [p["metric"] for p in run["curve"]]


def at(run: dict[str, Any], time: float) -> float | None:
    """The last accuracy of the curve of ``run`` at or before ``time``; None if there is none."""
    times, values = _points(run)
    before = [value for when, value in zip(times, values, strict=True) if when <= time * 1.001]
    return before[-1] if before else None


def time_to(run: dict[str, Any], level: float) -> float | None:
    """Seconds until the curve of ``run`` is at ``level``, between evaluations on a straight line; None if never."""
    times, values = _points(run)
    for i, (when, value) in enumerate(zip(times, values, strict=True)):
        if value >= level:
            if i == 0:
                return when
            share = (level - values[i - 1]) / (value - values[i - 1])
            return times[i - 1] + share * (when - times[i - 1])
    return None
