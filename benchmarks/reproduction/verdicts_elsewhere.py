"""Verdicts on the claims beside fine-tuning, from the results of the bounds and of training from scratch.

Training from scratch counts with the results of `python -m benchmarks reproduce scratch`, or else with those of the
examples, which are smaller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

from benchmarks.accuracy.results import Result, ResultsFile
from benchmarks.reproduction.outcomes import Outcome
from benchmarks.reproduction.verdict import CONFIRMED, IN_PART, MISSING, NOT_CONFIRMED, Verdict, graded


OURS, SHORT, LONG = "multirate", "h = 0.004", "h = 0.1"
"""Multirate training, and the two step sizes of the copies."""

SIGMAS = 3
"""Standard errors by which a measured mean has to be above a bound to violate it."""

PATCHES_BEHIND = 2.0
"""Points by which averaged copies may be behind on patches."""

SUBGROUPS: Mapping[str, tuple[str, str, int, int]] = {
    "perceptron": ("mnist_subgroups", "test accuracy, %", 1, 2),
    "text": ("lm_subgroups", "best validation loss", -1, 3),
}
"""Table -> its example, its figure, the sign of an improvement, and digits."""

Finals = dict[str, dict[int, dict[str, float]]]
"""Method -> seed -> figures."""


def bounds(found: Sequence[Outcome], root: Path) -> Verdict:
    """Measured means against the bound as it is printed, and against the corrected one."""
    del found
    points = list(_points(root))
    if not points:
        return Verdict(MISSING)
    numbers, violations = [], {}
    for name in ("printed", "corrected"):
        violations[name] = sum(run["mean"] - SIGMAS * run["error"] > run[name] for run in points)
        numbers.append(f"{name} bound violated at {violations[name]} of {len(points)} points")
    word = CONFIRMED if not violations["printed"] else IN_PART if not violations["corrected"] else NOT_CONFIRMED
    return Verdict(word, "; ".join(numbers))


def regularises(found: Sequence[Outcome], root: Path) -> Verdict:
    """Random subsets against standard training and against other masks."""
    del found
    holds, numbers = [], []
    for name, (example, figure, sign, digits) in SUBGROUPS.items():
        finals, source = _finals(root, name, example)
        for other in (method for method in finals if method != OURS and OURS in finals):
            gap, error = gap_of(finals, OURS, other, figure)
            holds.append(sign * gap > error)
            numbers.append(f"{figure}, against {other}{source}: {gap:+.{digits}f} ± {error:.{digits}f}")
    return graded(holds, numbers)


def time_scales(found: Sequence[Outcome], root: Path) -> Verdict:
    """Averaged copies against single step sizes, on clean images and on patches."""
    del found
    finals, source = _finals(root, "patches", "patches")
    if not {OURS, SHORT, LONG} <= finals.keys():
        return Verdict(MISSING)
    others = [method for method in finals if method != OURS]
    apart = {
        f"clean images, {LONG} against {SHORT}{source}": gap_of(finals, LONG, SHORT, "clean"),
        f"patches alone, {SHORT} against {LONG}": gap_of(finals, SHORT, LONG, "patch only"),
    }
    clean = {f"clean images, copies against {other}": gap_of(finals, OURS, other, "clean") for other in others}
    patches = min(gap_of(finals, OURS, other, "patch only")[0] for other in others)
    numbers = [f"{words}: {gap:+.1f} ± {error:.1f}" for words, (gap, error) in (apart | clean).items()]
    numbers.append(f"patches alone, copies against the best: {patches:+.1f}")
    ahead = all(gap > error for gap, error in (apart | clean).values())
    by_mean = all(gap > 0 for gap, _ in clean.values())
    word = CONFIRMED if ahead and patches >= -PATCHES_BEHIND else IN_PART if by_mean else NOT_CONFIRMED
    return Verdict(word, "; ".join(numbers))


def _points(root: Path) -> Iterator[Result]:
    """Measured points of all problems."""
    folder = root / "benchmarks" / "results" / "reproduction"
    for path in sorted(folder.glob("*_bounds.jsonl")):
        yield from ResultsFile(folder, path.stem.removesuffix("_bounds"), "bounds").runs


def _finals(root: Path, name: str, example: str) -> tuple[Finals, str]:
    """Results of a table, or else of its example, and words for the latter; empty if there are none."""
    found: Finals = {}
    for run in ResultsFile(root / "benchmarks" / "results" / "reproduction", name, "scratch").runs:
        if run["role"] == "final":
            found.setdefault(run["method"], {})[run["seed"]] = run["figures"]
    path = root / "examples" / "results" / f"{example}.json"
    if found or not path.exists():
        return found, ""
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        found.setdefault(run["method"], {})[run["seed"]] = run["final"]
    return found, " (example)"


def gap_of(finals: Finals, method: str, other: str, figure: str) -> tuple[float, float]:
    """Mean of a figure less that of another method, paired by seed, and half of its 95 % t-interval."""
    pairs = sorted(finals[method].keys() & finals[other].keys())
    gaps = [finals[method][seed][figure] - finals[other][seed][figure] for seed in pairs]
    if len(gaps) < 2:
        return fmean(gaps), float("inf")
    return fmean(gaps), float(stats.t.ppf(0.975, len(gaps) - 1) * stdev(gaps) / len(gaps) ** 0.5)
