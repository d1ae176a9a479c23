"""The claims of the paper's abstract, and the verdict on each from the results, by a stated rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.budgets.statistics import interval
from benchmarks.reproduction.contenders import HEAD
from benchmarks.reproduction.outcomes import LEVEL, Outcome, compared


CONFIRMED, IN_PART, NOT_CONFIRMED, MISSING = "confirmed", "confirmed in part", "not confirmed", "not measured yet"
ALMOST_HALF = (1.8, 1.5)
"""Speed-ups that confirm the claim about time, in full and in part."""

PATCHES_BEHIND = 2.0
"""Points by which averaged copies may be behind on patches."""


@dataclass(frozen=True)
class Verdict:
    """One of `CONFIRMED`, `IN_PART`, `NOT_CONFIRMED` and `MISSING`, and the numbers."""

    word: str
    numbers: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: The claim.
        rule: When it counts as confirmed, and as confirmed in part.
        command: What measures it.
        verdict: From the outcomes, and from the folder with ``examples/results``.
    """

    text: str
    rule: str
    command: str
    verdict: Callable[[Sequence[Outcome], Path], Verdict]


def _graded(holds: Sequence[bool], numbers: Sequence[str]) -> Verdict:
    """All, some or none."""
    if not holds:
        return Verdict(MISSING)
    word = CONFIRMED if all(holds) else IN_PART if any(holds) else NOT_CONFIRMED
    return Verdict(word, "; ".join(numbers))


def half_the_time(found: Sequence[Outcome], root: Path) -> Verdict:
    """Speed-up with the head fast, at equal steps."""
    del root
    speedups = {outcome.task: outcome.speedup(HEAD) or 0.0 for outcome in compared(list(found))}
    if not speedups:
        return Verdict(MISSING)
    full, some = ALMOST_HALF
    least, most = min(speedups.values()), max(speedups.values())
    word = CONFIRMED if least >= full else IN_PART if most >= some else NOT_CONFIRMED
    return Verdict(word, "; ".join(f"{task} {speedup:.2f} times as fast" for task, speedup in speedups.items()))


def no_loss(experiment: str) -> Callable[[Sequence[Outcome], Path], Verdict]:
    """Accuracy of multirate training less that of all parameters, at equal steps."""

    def verdict(found: Sequence[Outcome], root: Path) -> Verdict:
        del root
        holds, numbers = [], []
        for outcome in compared(list(found)):
            rows = [name for name in outcome.experiment.multirate if outcome.experiment.name == experiment]
            for row in (name for name in rows if name in outcome.rows):
                gap = interval(outcome.gaps(row))
                holds.append(gap.value >= -LEVEL)
                ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
                numbers.append(f"{outcome.task}, {row}: {100 * gap.value:+.1f} points ({ends})")
        return _graded(holds, numbers)

    return verdict


Finals = dict[str, dict[int, dict[str, float]]]
"""Method -> seed -> figures."""


def _example(root: Path, name: str) -> Finals:
    """Results of an example; empty if there are none."""
    path = root / "examples" / "results" / f"{name}.json"
    found: Finals = {}
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []:
        found.setdefault(run["method"], {})[run["seed"]] = run["final"]
    return found


def _gap(finals: Finals, other: str, figure: str) -> tuple[float, float]:
    """Mean of a figure of multirate training less that of another method, and its standard error."""
    pairs = finals["multirate"].keys() & finals[other].keys()
    gaps = [finals["multirate"][seed][figure] - finals[other][seed][figure] for seed in sorted(pairs)]
    return fmean(gaps), stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")


SUBGROUPS: Mapping[str, tuple[str, int, int]] = {
    "mnist_subgroups": ("test accuracy, %", 1, 1),
    "lm_subgroups": ("best validation loss", -1, 3),
}
"""Example -> its figure, the sign of an improvement, and digits."""


def regularises(found: Sequence[Outcome], root: Path) -> Verdict:
    """Random subsets against standard training and against other masks."""
    del found
    holds, numbers = [], []
    for name, (figure, sign, digits) in SUBGROUPS.items():
        finals = _example(root, name)
        for other in (method for method in finals if method != "multirate"):
            gap, error = _gap(finals, other, figure)
            holds.append(sign * gap > 2 * error)
            numbers.append(f"{figure}, against {other}: {gap:+.{digits}f} ± {error:.{digits}f}")
    return _graded(holds, numbers)


def time_scales(found: Sequence[Outcome], root: Path) -> Verdict:
    """Averaged copies against both single step sizes, on clean images and on patches."""
    del found
    finals = _example(root, "patches")
    others = [method for method in finals if method != "multirate"]
    if not others:
        return Verdict(MISSING)
    clean = {other: _gap(finals, other, "clean") for other in others}
    patches = min(_gap(finals, other, "patch only")[0] for other in others)
    numbers = [f"clean images, against {other}: {gap:+.1f} ± {error:.1f}" for other, (gap, error) in clean.items()]
    numbers.append(f"patches alone, against the better: {patches:+.1f} points")
    ahead = [gap > 2 * error for gap, error in clean.values()]
    if all(ahead) and patches >= -PATCHES_BEHIND:
        return Verdict(CONFIRMED, "; ".join(numbers))
    better = all(gap > 0 for gap, _ in clean.values())
    return Verdict(IN_PART if better else NOT_CONFIRMED, "; ".join(numbers))


def not_measured(found: Sequence[Outcome], root: Path) -> Verdict:
    """A claim without results here."""
    del found, root
    return Verdict(MISSING)


CLAIMS = (
    Claim(
        "Deep networks are fine-tuned in almost half the time",
        f"speed-up at equal steps of {ALMOST_HALF[0]} or more on every task; in part: {ALMOST_HALF[1]} on one",
        "reproduce vision, reproduce language",
        half_the_time,
    ),
    Claim(
        "without reducing the generalization performance, in vision",
        f"mean accuracy at equal steps no more than {100 * LEVEL:.1f} points below all parameters, in each multirate "
        "row of each task; in part: in one",
        "reproduce vision",
        no_loss("vision"),
    ),
    Claim("and in language", "as in vision", "reproduce language", no_loss("language")),
    Claim("Convergence bounds", "none yet", "reproduce bounds", not_measured),
    Claim(
        "Other splits regularise networks that are trained from scratch (random subgroups)",
        "better than every baseline by two standard errors; in part: than one",
        "examples/train_mnist_subgroups.py, examples/train_lm_subgroups.py",
        regularises,
    ),
    Claim(
        "Copies on different time scales learn different features",
        "on clean images better than both step sizes by two standard errors, and on patches no more than "
        f"{PATCHES_BEHIND:.0f} points behind; in part: better on clean images by the mean",
        "examples/train_patches.py",
        time_scales,
    ),
)
