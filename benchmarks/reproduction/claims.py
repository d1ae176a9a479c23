"""The claims of the paper's abstract, and the verdict on each from the results, by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.budgets.statistics import interval
from benchmarks.reproduction.contenders import EXPERIMENTS, HEAD, Experiment
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
    numbers = [f"{task} {speedup:.2f} times as fast" for task, speedup in speedups.items()]
    return _of_every_task(Verdict(word, "; ".join(numbers)), EXPERIMENTS.values(), found)


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
        return _of_every_task(graded(holds, numbers), [EXPERIMENTS[experiment]], found)

    return verdict


def _of_every_task(verdict: Verdict, experiments: Iterable[Experiment], found: Sequence[Outcome]) -> Verdict:
    """A verdict that is in part at most, and names the tasks that are not measured, if there are any."""
    there = {outcome.task for outcome in compared(list(found))}
    absent = [task for experiment in experiments for task in experiment.tasks if task not in there]
    if verdict.word == MISSING or not absent:
        return verdict
    word = IN_PART if verdict.word == CONFIRMED else verdict.word
    return Verdict(word, "; ".join([verdict.numbers, *(f"{task}: {MISSING}" for task in absent)]))


CLAIMS = (
    Claim(
        "Deep networks are fine-tuned in almost half the time",
        f"a speed-up at equal steps of {ALMOST_HALF[0]} or more on every task; in part: {ALMOST_HALF[1]} on one",
        "reproduce vision, reproduce language",
        half_the_time,
    ),
    Claim(
        "without reducing the generalization performance, in vision",
        f"a mean accuracy at equal steps no more than {100 * LEVEL:.1f} points below all parameters, in each "
        "multirate row of each task; in part: in one",
        "reproduce vision",
        no_loss("vision"),
    ),
    Claim("and in language", "the same as for 2", "reproduce language", no_loss("language")),
    Claim(
        "Convergence bounds",
        f"no measured mean above the printed bound by {SIGMAS} standard errors; in part: none above the corrected one",
        "reproduce bounds",
        bounds,
    ),
    Claim(
        "Other splits regularise networks that are trained from scratch (random subgroups)",
        "a result better than that of every baseline, by a 95 % t-interval, in each table; in part: in one table; "
        "undecided: better than every baseline in none, and worse than none",
        "reproduce scratch",
        regularises,
    ),
    Claim(
        "Copies on different time scales learn different features",
        "an advantage of the long step size on clean images and of the short one on patches, of copies over each "
        f"baseline on clean images, all by 95 % t-intervals, and copies no more than {PATCHES_BEHIND:.0f} points "
        "behind on patches; in part: a mean of copies above each on clean images; undecided: not in part, and copies "
        "behind none on clean images by its interval",
        "reproduce scratch",
        time_scales,
    ),
)
