"""Tables and verdicts of the experiments of the paper, from made-up results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.results import ResultsFile
from benchmarks.reproduction import claims, page, verdict
from benchmarks.reproduction import verdicts_elsewhere as elsewhere
from benchmarks.reproduction.contenders import ALL, BLOCK, HEAD, VISION
from benchmarks.reproduction.outcomes import compared, outcomes


MACHINE = {"commit": "a" * 40, "dirty": False, "processor": "x"}
STEPS = 90


def result(method: str, seed: int, test: float, seconds: float, **more: Any) -> dict[str, Any]:
    curve = [{"step": 30, "metric": test - 0.1}, {"step": 60, "metric": test}, {"step": STEPS, "metric": test}]
    run = {"task": "vision", "length": "20", "method": method, "time_of": "", "rate": 0.1, "seed": seed}
    scores = {"role": "final", "validation_metric": 0.5, "test_metric": test, "steps": STEPS, "curve": curve}
    settings = {"task": {}, "method": {"family": "x"}}
    return {**run, **scores, "reference_seconds": seconds, "settings": settings, "machine": MACHINE, **more}


def written(root: Path, ahead: float = 0.01, seconds: float = 50.0, task: str = "vision", length: str = "20") -> None:
    file = ResultsFile(root / "benchmarks" / "results" / "reproduction", task, length)
    where = {"task": task, "length": length}
    for name in (ALL, HEAD, BLOCK, "period 10"):
        file.append(result(name, 100, 0.0, 1.0, role="trial", **where))
        file.append(result(name, 100, 0.0, 1.0, role="trial", rate=0.2, validation_metric=0.4, **where))
    for seed in range(3):
        file.append(result(ALL, seed, 0.80 + 0.01 * seed, 100.0, **where))
        file.append(result(HEAD, seed, 0.80 + 0.01 * seed + ahead, seconds, **where))
        file.append(result(BLOCK, seed, 0.80 + 0.01 * seed - 0.02, seconds, **where))
        file.append(result(ALL, seed, 0.78, 50.0, time_of=HEAD, steps=45, **where))
        file.append(result("period 10", seed, 0.75, 40.0, **where))
        file.append(result(HEAD, seed, 0.1, 50.0, rate=0.2, **where))  # at a rate that was not chosen


def test_tables_have_our_figures_beside_those_of_the_paper(tmp_path: Path) -> None:
    written(tmp_path)
    (outcome,) = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    lines = page.rows_table(outcome).splitlines()
    assert lines[2] == (
        "| all parameters | 81.0 (80.0 to 82.0) | 100 | 1.00 | 3, 0.1\\* |  |  |  | 83.24 (83.19 to 83.34) | 1.00 |"
    )
    assert lines[3].startswith(
        f"| {HEAD} | 82.0 (81.0 to 83.0) | 50 | 2.00 | 3, 0.1\\* | **+1.0 (+1.0 to +1.0)** | 78.0 (78.0 to 78.0) "
        "| **+4.0 (+1.5 to +6.5)** |"
    )
    assert lines[3].endswith("| 83.41 (83.25 to 83.62) | 1.99 |")
    assert "| period 10 | 75.0 (75.0 to 75.0) | 2.50 | 3, 0.1\\* | **-7.0 " in page.ablations(outcome)


def test_a_curve_is_level_from_where_it_stays_level(tmp_path: Path) -> None:
    written(tmp_path)
    (outcome,) = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    assert outcome.level_from(HEAD) == pytest.approx(1 / 3)
    assert outcome.level_from("period 10") is None
    runs = outcome.rows[HEAD].values()
    for run in runs:
        run["curve"][1]["metric"] = 0.5
    assert outcome.level_from(HEAD) == 1.0


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    text = page.page(tmp_path)
    assert text.count("\n\nNot measured yet.\n") == 6
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`reproduce vision`" in line]
    assert len(rows) == 2
    assert all("| not measured yet |" in row for row in rows)
    page.draw(tmp_path)
    assert not list(tmp_path.rglob("*.png"))


def test_lower_rates_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    assert "### Lower learning rates" not in page.page(tmp_path)
    verdicts = page.page(tmp_path).partition("## How to read")[0]
    file = ResultsFile(tmp_path / "benchmarks" / "results" / "reproduction", "vision", "20")
    for rate in (0.025, 0.05):
        for seed in range(3):
            file.append(result(HEAD, seed, 0.90 + rate, 50.0, rate=rate))
    text = page.page(tmp_path)
    assert text.partition("## How to read")[0] == verdicts
    rows = text.partition("### Lower learning rates, 20 epochs")[2].splitlines()[4:7]
    assert [row[: row.index(" (")] for row in rows] == [
        f"| {HEAD} | {cell}" for cell in ("0.1 | 82.0", "0.05 | 95.0", "0.025 | 92.5")
    ]
    assert all(f"| 3 | **+{gap}" in row for row, gap in zip(rows, ("1.0", "14.0", "11.5"), strict=True))


def test_a_page_shows_where_all_parameters_end_with_each_length(tmp_path: Path) -> None:
    for length, test in {"10": 0.75, "20": 0.76}.items():
        file = ResultsFile(tmp_path / "benchmarks" / "results" / "reproduction", "vision", length)
        file.append(result(ALL, 100, test, 1.0, role="length", length=length))
    words = "by epochs, with the gain in the last third: 75.0 % with 10 (+0.0), 76.0 % with 20 (+0.0)."
    assert words in page.page(tmp_path)


def test_a_page_with_results_has_a_picture(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "docs" / "results" / "images").mkdir(parents=True)
    text = page.page(tmp_path)
    assert "images/reproduction_vision_20.png" in text
    assert "### Ablations, 20 epochs" in text
    assert f"- From 0.33 of the steps on, {HEAD} stays within 0.5 points of all parameters." in text
    page.draw(tmp_path)
    assert (tmp_path / "docs" / "results" / "images" / "reproduction_vision_20.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("seconds", "word"), [(50.0, verdict.CONFIRMED), (60.0, verdict.IN_PART), (80.0, verdict.NOT_CONFIRMED)]
)
def test_the_verdict_on_time(seconds: float, word: str, tmp_path: Path) -> None:
    for task, length in {"vision": "20", "language_adamw": "3", "language_sgd": "3"}.items():
        written(tmp_path, seconds=seconds, task=task, length=length)
    found = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    found_verdict = claims.half_the_time(found, tmp_path)
    assert found_verdict.word == word
    assert f"vision {100 / seconds:.2f} times as fast" in found_verdict.numbers
    assert claims.half_the_time([], tmp_path).word == verdict.MISSING


def test_a_claim_about_every_task_is_confirmed_in_part_as_long_as_one_is_not_measured(tmp_path: Path) -> None:
    written(tmp_path, seconds=50.0)
    found = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    time = claims.half_the_time(found, tmp_path)
    assert time.word == verdict.IN_PART
    assert time.numbers.endswith("; language_adamw: not measured yet; language_sgd: not measured yet")
    assert claims.no_loss("vision")(found, tmp_path).word == verdict.CONFIRMED
    assert claims.no_loss("language")(found, tmp_path).word == verdict.MISSING


def test_fewer_than_three_seeds_are_shown_without_a_verdict(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "benchmarks" / "results" / "reproduction", "vision", "20")
    for name, test in {ALL: 0.80, HEAD: 0.79}.items():
        file.append(result(name, 100, 0.0, 1.0, role="trial"))
        file.append(result(name, 0, test, 50.0))
    text = page.page(tmp_path)
    assert f"| {HEAD} | 79.0 | 50 | 1.00 | 1, 0.1\\* | -1.0 |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`reproduce vision`" in line]
    assert all("| not measured yet |" in row for row in rows)


def test_the_verdict_on_generalization(tmp_path: Path) -> None:
    written(tmp_path, ahead=-0.004)
    written(tmp_path, ahead=0.01, task="language_sgd", length="3")
    found = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    vision = claims.no_loss("vision")(found, tmp_path)
    assert (vision.word, vision.numbers) == (verdict.CONFIRMED, f"vision, {HEAD}: -0.4 points (-0.4 to -0.4)")
    language = claims.no_loss("language")(found, tmp_path)
    assert language.word == verdict.IN_PART  # the last block and head are 2 points behind
    assert f"language_sgd, {BLOCK}: -2.0 points" in language.numbers
    written(tmp_path, ahead=-0.01, length="30")
    found = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    assert [outcome.length for outcome in compared(found)] == ["30", "3"]
    assert claims.no_loss("vision")(found, tmp_path).word == verdict.NOT_CONFIRMED
    assert claims.no_loss("language")([], tmp_path).word == verdict.MISSING


def test_a_row_with_fewer_pairs_says_so(tmp_path: Path) -> None:
    written(tmp_path)
    file = ResultsFile(tmp_path / "benchmarks" / "results" / "reproduction", "vision", "20")
    file.append(result(HEAD, 3, 0.84, 50.0))
    (outcome,) = outcomes(tmp_path / "benchmarks" / "results" / "reproduction")
    assert "| **+4.0 (+1.5 to +6.5)**, 3 of 4 seeds |" in page.rows_table(outcome)


def scratch(root: Path, name: str, finals: dict[str, list[dict[str, float]]]) -> None:
    file = ResultsFile(root / "benchmarks" / "results" / "reproduction", name, "scratch")
    shared = {"settings": {"task": {}, "method": {}}, "machine": MACHINE}
    for method, figures_of in finals.items():
        for seed, figures in enumerate(figures_of):
            words = {"method": method, "seed": seed, "role": "final", "figures": figures}
            file.append({"task": name, "length": "scratch", **words, **shared})


def losses(*values: float) -> list[dict[str, float]]:
    return [{"best validation loss": value} for value in values]


def accuracies(*values: float) -> list[dict[str, float]]:
    return [{"test accuracy, %": value} for value in values]


OURS = losses(4.0, 4.02)
BETTER, CLOSE, WORSE = losses(4.5, 4.51), losses(4.0, 4.03), losses(3.5, 3.51)
"""Baselines that ours is better than, is close to, and is worse than."""


@pytest.mark.parametrize(
    ("baselines", "accuracy", "word"),
    [
        ((BETTER, BETTER), (98.0, 98.1), verdict.CONFIRMED),
        ((BETTER, BETTER), (), verdict.IN_PART),  # a table is not measured
        ((BETTER, BETTER), (90.0, 90.1), verdict.IN_PART),
        ((BETTER, CLOSE), (), verdict.UNDECIDED),
        ((CLOSE, CLOSE), (), verdict.UNDECIDED),
        ((BETTER, WORSE), (), verdict.NOT_CONFIRMED),
    ],
)
def test_the_verdict_on_random_subgroups(
    baselines: tuple[Any, Any], accuracy: tuple[float, ...], word: str, tmp_path: Path
) -> None:
    assert elsewhere.regularises([], tmp_path).word == verdict.MISSING
    scratch(tmp_path, "text", {"multirate": OURS, "SGD": baselines[0], "SGD + dropout": baselines[1]})
    if accuracy:
        ours, standard = accuracies(*accuracy), accuracies(95.0, 95.2)
        scratch(tmp_path, "perceptron", {"multirate": ours, "standard": standard})
    found = elsewhere.regularises([], tmp_path)
    assert found.word == word
    assert ("perceptron: not measured yet" in found.numbers) == (not accuracy)
    if baselines[0] is BETTER:
        assert "best validation loss, against SGD: -0.495 ± 0.064" in found.numbers


@pytest.mark.parametrize(
    ("clean", "patches", "long", "word"),
    [
        ((46.0, 46.1), 99.0, 41.0, verdict.CONFIRMED),
        ((46.0, 46.1), 90.0, 41.0, verdict.IN_PART),
        ((46.0, 46.1), 99.0, 39.0, verdict.IN_PART),  # the long step is not better on clean images
        ((40.1, 49.0), 99.0, 41.0, verdict.IN_PART),
        ((39.0, 39.1), 99.0, 41.0, verdict.NOT_CONFIRMED),
        ((35.0, 44.0), 99.0, 41.0, verdict.UNDECIDED),
    ],
)
def test_the_verdict_on_time_scales(
    clean: tuple[float, float], patches: float, long: float, word: str, tmp_path: Path
) -> None:
    assert elsewhere.time_scales([], tmp_path).word == verdict.MISSING
    small = [{"clean": 40.0, "patch only": 99.5}, {"clean": 40.0, "patch only": 99.5}]
    large = [{"clean": long, "patch only": 30.0}, {"clean": long, "patch only": 30.0}]
    ours = [{"clean": value, "patch only": patches} for value in clean]
    scratch(tmp_path, "patches", {"h = 0.004": small, "h = 0.1": large, "multirate": ours})
    assert elsewhere.time_scales([], tmp_path).word == word


def test_every_row_of_images_has_a_figure_of_the_paper() -> None:
    assert set(VISION.rows) == set(page.paper.FIGURES["vision"])


@pytest.mark.parametrize(
    ("printed", "corrected", "word"),
    [(0.9, 2.0, verdict.CONFIRMED), (0.6, 2.0, verdict.IN_PART), (0.6, 0.6, verdict.NOT_CONFIRMED)],
)
def test_the_verdict_on_the_bounds(printed: float, corrected: float, word: str, tmp_path: Path) -> None:
    assert elsewhere.bounds([], tmp_path).word == verdict.MISSING
    file = ResultsFile(tmp_path / "benchmarks" / "results" / "reproduction", "huber", "bounds")
    shared = {"settings": {"task": {}, "method": {}}, "machine": MACHINE}
    for name, value in (("2 groups", printed), ("4 groups", 2.0)):
        point = {
            "method": name,
            "h": 0.1,
            "k": 1,
            "mean": 1.0,
            "error": 0.1,
            "printed": value,
            "corrected": max(value, corrected),
        }
        file.append({"task": "huber", "length": "bounds", **point, **shared})
    found = elsewhere.bounds([], tmp_path)
    assert found.word == word
    assert "of 2 points" in found.numbers
