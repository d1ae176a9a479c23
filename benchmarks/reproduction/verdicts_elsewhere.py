"""Verdicts on the claims beside fine-tuning, from the results of the bounds and of training from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.budgets.statistics import Interval
from benchmarks.reproduction.bounds_page import read_points
from benchmarks.reproduction.from_scratch_page import gap_of, read_finals
from benchmarks.reproduction.outcomes import Outcome
from benchmarks.reproduction.verdict import (
    CONFIRMED,
    IN_PART,
    MISSING,
    NOT_CONFIRMED,
    UNDECIDED,
    Verdict,
)


OURS, SHORT, LONG = "multirate", "h = 0.004", "h = 0.1"
"""Multirate training, and the two step sizes of the copies."""

SIGMAS = 3
"""Standard errors by which a measured mean has to be above a bound to violate it."""

PATCHES_BEHIND = 2.0
"""Points by which averaged copies may be behind on patches."""

SUBGROUPS: Mapping[str, tuple[str, int, int]] = {
    "perceptron": ("test accuracy, %", 1, 2),
    "text": ("best validation loss", -1, 3),
}
"""Table -> its figure, the sign of an improvement, and digits."""


def bounds(found: Sequence[Outcome], root: Path) -> Verdict:
    """Measured means against the bound as it is printed, and against the corrected one."""
    del found
    points = [run for runs in read_points(_folder(root)).values() for run in runs]
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
    tables, holds, worse, numbers = read_finals(_folder(root)), [], [], []
    for name, (figure, sign, digits) in SUBGROUPS.items():
        finals = tables.get(name, {})
        others = [method for method in finals if method != OURS and OURS in finals]
        if not others:
            numbers.append(f"{name}: {MISSING}")
        gaps = {other: gap_of(finals, OURS, other, figure) for other in others}
        numbers += [_words(f"{figure}, against {other}", gap, digits) for other, gap in gaps.items()]
        clear = {sign if gap.low > 0 else -sign if gap.high < 0 else 0 for gap in gaps.values()}
        holds += [clear == {1}] if others else []
        worse.append(-1 in clear)
    if not holds:
        return Verdict(MISSING)
    word = CONFIRMED if all(holds) and len(holds) == len(SUBGROUPS) else IN_PART if any(holds) else UNDECIDED
    return Verdict(NOT_CONFIRMED if word == UNDECIDED and any(worse) else word, "; ".join(numbers))


def time_scales(found: Sequence[Outcome], root: Path) -> Verdict:
    """Averaged copies against single step sizes, on clean images and on patches."""
    del found
    finals = read_finals(_folder(root)).get("patches", {})
    if not {OURS, SHORT, LONG} <= finals.keys():
        return Verdict(MISSING)
    others = [method for method in finals if method != OURS]
    apart = {
        f"clean images, {LONG} against {SHORT}": gap_of(finals, LONG, SHORT, "clean"),
        f"patches alone, {SHORT} against {LONG}": gap_of(finals, SHORT, LONG, "patch only"),
    }
    clean = {f"clean images, copies against {other}": gap_of(finals, OURS, other, "clean") for other in others}
    patches = min(gap_of(finals, OURS, other, "patch only").value for other in others)
    numbers = [_words(words, gap, 1) for words, gap in (apart | clean).items()]
    numbers.append(f"patches alone, copies against the best: {patches:+.1f}")
    ahead = all(gap.low > 0 for gap in (apart | clean).values())
    by_mean = all(gap.value > 0 for gap in clean.values())
    word = CONFIRMED if ahead and patches >= -PATCHES_BEHIND else IN_PART if by_mean else UNDECIDED
    worse = any(gap.high < 0 for gap in clean.values())
    return Verdict(NOT_CONFIRMED if word == UNDECIDED and worse else word, "; ".join(numbers))


def _words(what: str, gap: Interval, digits: int) -> str:
    """A difference and half of its interval."""
    return f"{what}: {gap.value:+.{digits}f} ± {gap.high - gap.value:.{digits}f}"


def _folder(root: Path) -> Path:
    return root / "benchmarks" / "results" / "reproduction"
