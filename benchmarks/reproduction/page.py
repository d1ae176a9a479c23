"""The page docs/results/reproduction.md and its pictures, from the results of `python -m benchmarks reproduce`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.budgets.cells import Cell, differences
from benchmarks.budgets.report import points
from benchmarks.budgets.statistics import interval
from benchmarks.plots import Curves, accuracy_by_time
from benchmarks.reproduction import paper
from benchmarks.reproduction.claims import CLAIMS
from benchmarks.reproduction.contenders import ALL, EXPERIMENTS, HEAD, label
from benchmarks.reproduction.outcomes import LEAST_SEEDS, LEVEL, Outcome, ends, outcomes
from benchmarks.reproduction.page_text import DIFFERENT, INTRODUCTION, READING
from benchmarks.reproduction.verdict import MISSING
from benchmarks.tables import signed, table


PAGE = "reproduction.md"
HEADER = "<!-- Written by `python -m benchmarks report` from benchmarks/results/reproduction. -->"
TITLES = {
    "vision": "Vision: half a ResNet-50, CIFAR-10",
    "language_adamw": "Language: MiniLM, SST-2, AdamW",
    "language_sgd": "Language: MiniLM, SST-2, SGD",
    "full_vision": "Vision, full scale: ResNet-50, CIFAR-100",
    "full_language_adamw": "Language, full scale: DistilBERT, SST-2, AdamW",
    "full_language_sgd": "Language, full scale: DistilBERT, SST-2, SGD",
}


def page(root: Path, *, allow_dirty: bool = False) -> str:
    """Text of the page.

    Args:
        root: Folder with ``benchmarks/results`` and ``examples/results``.
        allow_dirty: Whether results of files that were not committed are shown too.

    Raises:
        ValueError: a result is of files that were not committed, and ``allow_dirty`` is not set.
    """
    folder = root / "benchmarks" / "results" / "reproduction"
    found = outcomes(folder, allow_dirty=allow_dirty)
    parts = [HEADER, INTRODUCTION, *_claims(found, root), READING]
    for experiment in EXPERIMENTS.values():
        for task in (*experiment.tasks, *experiment.full_tasks):
            parts += _of_task(task, [outcome for outcome in found if outcome.task == task], folder)
    return "\n\n".join([*parts, DIFFERENT]) + "\n"


def _of_task(task: str, found: Sequence[Outcome], folder: Path) -> Iterator[str]:
    yield f"## {TITLES.get(task, task)}"
    ended = ends(folder).get(task, {})
    if not found and not ended:
        yield f"{MISSING.capitalize()}."
    if ended:
        words = (f"{100 * end:.1f} % with {length} ({signed(gain)})" for length, (end, gain) in ended.items())
        yield f"All parameters on validation rows, by epochs, with the gain in the last third: {', '.join(words)}."
    for outcome in found:
        yield f"### {outcome.length} epochs"
        yield rows_table(outcome)
        if ALL in outcome.rows and HEAD in outcome.rows:
            yield f"![test accuracy against steps](images/{picture(outcome)})"
            yield from _curves(outcome)
        if outcome.lower:
            yield f"### Lower learning rates, {outcome.length} epochs"
            yield lower_rates(outcome)
        if any(name in outcome.rows for name in outcome.experiment.ablations):
            yield f"### Ablations, {outcome.length} epochs"
            yield ablations(outcome)


def rows_table(outcome: Outcome) -> str:
    """Our figures beside those of the paper."""
    rows, own = [], paper.FIGURES[outcome.experiment.name]
    for name in (name for name in outcome.experiment.rows if name in outcome.rows):
        speed = outcome.speedup(name)
        ours = [_accuracy(outcome.rows[name]), f"{outcome.seconds(name):.0f}", "" if speed is None else f"{speed:.2f}"]
        behind = "" if name == ALL else _gap(outcome.gaps(name))
        theirs = [own[name].text, f"{paper.speedup(outcome.experiment.name, name):.2f}"] if name in own else ["", ""]
        rows.append([label(name), *ours, _rate(outcome, name), behind, *_in_time(outcome, name), *theirs])
    header = ["trained", "accuracy, %", "seconds", "speed-up", "seeds, rate", "against all, points"]
    header += ["all in that time, %", "against it, points", "paper: accuracy, %", "paper: speed-up"]
    return table(header, rows)


def lower_rates(outcome: Outcome) -> str:
    """Multirate training at the chosen rate and below it, compared with all parameters."""
    rows = []
    for name, cells in outcome.lower.items():
        chosen = outcome.rows[name]
        for rate, cell in {next(iter(chosen.values()))["rate"]: chosen, **cells}.items():
            gap = _gap(differences(cell, outcome.rows.get(ALL, {})))
            rows.append([name, f"{rate:.2g}", _accuracy(cell), str(len(cell)), gap])
    return table(["trained", "rate", "accuracy, %", "seeds", "against all, points"], rows)


def ablations(outcome: Outcome) -> str:
    """Variants of multirate training, compared with the setting of the paper."""
    rows = []
    for name in (HEAD, *outcome.experiment.ablations):
        if name in outcome.rows:
            gap = "" if name == HEAD else _gap(outcome.gaps(name, HEAD))
            speed = outcome.speedup(name)
            cell = outcome.rows[name]
            rows.append([name, _accuracy(cell), "" if speed is None else f"{speed:.2f}", _rate(outcome, name), gap])
    return table(["variant", "accuracy, %", "speed-up", "seeds, rate", f"against {HEAD}, points"], rows)


def _accuracy(cell: Cell) -> str:
    values = [100 * run["test_metric"] for run in cell.values()]
    return f"{fmean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


def _rate(outcome: Outcome, name: str) -> str:
    """Number of seeds, and the learning rate, with a star at an edge of all that were tried."""
    cell, tried = outcome.rows[name], outcome.grids[name]
    rate = next(iter(cell.values()))["rate"]
    edge = "\\*" if rate in (min(tried), max(tried)) else ""
    return f"{len(cell)}, {rate:.2g}{edge}"


def _gap(gaps: list[float]) -> str:
    """Mean difference and its interval, which a single difference lacks."""
    return points(interval(gaps)) if gaps else ""


def _in_time(outcome: Outcome, name: str) -> list[str]:
    """Accuracy of all parameters in the seconds of a row, and the difference; the number of pairs if some lack."""
    cell, gaps = outcome.in_time.get(name), outcome.gaps_in_time(name)
    if not cell:
        return ["", ""]
    pairs = "" if len(gaps) == len(outcome.rows[name]) else f", {len(gaps)} of {len(outcome.rows[name])} seeds"
    return [_accuracy(cell), _gap(gaps) + pairs]


def _curves(outcome: Outcome) -> Iterator[str]:
    """Mean accuracy along the steps, and where multirate training is level."""
    names = [ALL, *(name for name in outcome.experiment.multirate if name in outcome.rows)]
    curves = {name: outcome.curve(name) for name in names}
    rows = [[label(name), *(f"{100 * value:.1f}" for _, value in curve)] for name, curve in curves.items()]
    yield table(["share of the steps", *(f"{share:.2f}" for share, _ in curves[ALL])], rows)
    for name in names[1:]:
        share = outcome.level_from(name)
        where = "At no share of the steps" if share is None else f"From {share:.2f} of the steps on,"
        yield f"- {where} {name} stays within {100 * LEVEL:.1f} points of all parameters."
    if outcome.experiment.name == "vision":
        points = "78.0 against 80.7 at epoch 9 of 50, 81.5 against 82.9 at 19"
        yield f"- The paper: {points}, and level from epoch 35, which is 0.7 of the steps."


def picture(outcome: Outcome) -> str:
    """Name of the picture of the curves."""
    return f"reproduction_{outcome.task}_{outcome.length}.png"


def draw(root: Path, *, allow_dirty: bool = False) -> None:
    """Write the pictures of the page."""
    folder = root / "benchmarks" / "results" / "reproduction"
    for outcome in outcomes(folder, allow_dirty=allow_dirty):
        if ALL in outcome.rows and HEAD in outcome.rows:
            methods = {name: _plotted(outcome, name) for name in outcome.experiment.rows[1:] if name in outcome.rows}
            title = f"{TITLES.get(outcome.task, outcome.task)}, {outcome.length} epochs"
            path = root / "docs" / "results" / "images" / picture(outcome)
            accuracy_by_time(_plotted(outcome, ALL), methods, (), title, path, "steps")


def _plotted(outcome: Outcome, name: str) -> Curves:
    runs = list(outcome.rows[name].values())
    by_point = list(zip(*(run["curve"] for run in runs), strict=True))
    values = [[100 * point["metric"] for point in of_runs] for of_runs in by_point]
    return Curves([of_runs[0]["step"] for of_runs in by_point], values, name in outcome.experiment.multirate)


def _claims(found: Sequence[Outcome], root: Path) -> Iterator[str]:
    """Each claim of the abstract, the verdict on it, and its rule."""
    yield "## Claims of the abstract"
    rows = []
    for number, claim in enumerate(CLAIMS, 1):
        verdict = claim.verdict(found, root)
        commands = ", ".join(f"`{word}`" for word in claim.command.split(", "))
        rows.append([str(number), claim.text, verdict.word, verdict.numbers, commands])
    yield table(["", "claim", "verdict", "numbers", "command"], rows)
    yield (
        "Verdicts follow from the results by a rule, for the longest training of each task. A task counts as measured "
        f"with {LEAST_SEEDS} seeds. As long as a task is not measured, a claim about every task is confirmed in part "
        "at most. In the table ± is half of a 95 % interval. A claim is confirmed if there is:"
    )
    yield "\n".join(f"{number}. {claim.rule}." for number, claim in enumerate(CLAIMS, 1))
