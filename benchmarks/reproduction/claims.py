"""The claims of the paper's abstract, and the verdict on each from the results, by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.budgets.statistics import interval
from benchmarks.reproduction.contenders import HEAD
from benchmarks.reproduction.outcomes import LEVEL, Outcome, compared
from benchmarks.reproduction.verdict import CONFIRMED, IN_PART, MISSING, NOT_CONFIRMED, Verdict, graded
from benchmarks.reproduction.verdicts_elsewhere import PATCHES_BEHIND, SIGMAS, bounds, regularises, time_scales


ALMOST_HALF = (1.8, 1.5)
"""Speed-ups that confirm the claim about time, in full and in part."""


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: The claim.
        rule: When it counts as confirmed, and as confirmed in part.
        command: What measures it.
        verdict: From the outcomes, and from the folder with ``benchmarks/results``.
    """

    text: str
    rule: str
    command: str
    verdict: Callable[[Sequence[Outcome], Path], Verdict]


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
        return graded(holds, numbers)

    return verdict


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
    Claim(
        "Convergence bounds",
        f"no measured mean is above the printed bound by {SIGMAS} standard errors; in part: none is above the "
        "corrected one",
        "reproduce bounds",
        bounds,
    ),
    Claim(
        "Other splits regularise networks that are trained from scratch (random subgroups)",
        "better than every baseline, by a 95 % t-interval; in part: than one",
        "reproduce scratch",
        regularises,
    ),
    Claim(
        "Copies on different time scales learn different features",
        "of single step sizes the long one is better on clean images and the short one on patches, and copies are "
        "better than each baseline on clean images, all by 95 % t-intervals, and on patches no more than "
        f"{PATCHES_BEHIND:.0f} points behind; in part: copies are better than each on clean images by the mean",
        "reproduce scratch",
        time_scales,
    ),
)
