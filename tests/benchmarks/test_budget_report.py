"""Statistics of paired runs, and the page of results at equal time."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.accuracy.results import ResultsFile
from benchmarks.budgets import cells, report, summary_tables
from benchmarks.budgets.contenders import CONTENDERS
from benchmarks.budgets.kinds import KindsFile
from benchmarks.budgets.statistics import interval, over_tasks
from benchmarks.budgets.tasks import LANGUAGE_MODELS, TASKS
from benchmarks.report import Report


MACHINE = {
    "commit": "a" * 40, "dirty": False, "processor": "x", "cores": 2, "threads": 1, "versions": {"torch": "2.13"},
}  # fmt: skip
FAMILIES = {"baseline": "baseline", "baseline + head rate": "baseline", "good": "multirate", "bad": "frozen"}


def result(method: str, seed: int, test: float, validation: float = 0.5, **more: Any) -> dict[str, Any]:
    settings = {"task": {"epochs": 1}, "method": {"family": FAMILIES[method]}}
    run = {"task": "t", "length": "short", "method": method, "budget": 0.4, "rate": 0.1, "seed": seed, "role": "final"}
    seconds = {"reference_seconds": 40.0, "budget_seconds": 40.0, "process_seconds": 40.0, "steps": 30}
    scores = {"validation_metric": validation, "test_metric": test}
    return {**run, **seconds, **scores, "settings": settings, "machine": MACHINE, **more}


def written(folder: Path, task: str = "t", shift: float = 0.0, **more: Any) -> None:
    file = ResultsFile(folder, task, "short")
    for method in FAMILIES:
        for rate, score in ((0.1, 0.5), (0.2, 0.4)):
            file.append(result(method, 100, 0.0, score, rate=rate, role="trial", task=task))
    for seed in range(3):
        file.append(result("baseline", seed, 0.70, 0.60, task=task, **more))
        file.append(result("baseline + head rate", seed, 0.80, 0.75 + 0.01 * seed, task=task, **more))
        file.append(result("bad", seed, 0.75 + shift, task=task, **more))
        file.append(result("good", seed, 0.82 + 0.01 * seed, task=task, **more))
        file.append(result("good", seed, 0.99, rate=0.2, task=task, **more))  # at a rate that was not chosen


def test_intervals_and_aggregates_of_known_differences() -> None:
    assert vars(interval([0.2, 0.2, 0.2])) == pytest.approx({"value": 0.2, "low": 0.2, "high": 0.2})
    assert vars(interval([0.2])) == {"value": 0.2, "low": -inf, "high": inf}
    known = stats.ttest_1samp([0.0, 1.0, 0.3], 0.0).confidence_interval(0.95)
    found = interval([0.0, 1.0, 0.3])
    assert (found.value, found.low, found.high) == pytest.approx((1.3 / 3, known.low, known.high))
    summary = over_tasks({"a": [0.1, 0.1], "b": [-0.3, -0.1], "c": [0.0, 0.2]})
    assert summary.mean.value == pytest.approx(0.0)
    assert summary.worst == ("b", pytest.approx(-0.2))
    assert summary.better == pytest.approx((1 + 0 + 0.75) / 3)
    with pytest.raises(ValueError, match="at least one difference"):
        over_tasks({"a": []})


def test_the_interquartile_mean_is_the_trimmed_mean_of_scipy() -> None:
    values = np.random.default_rng(0).normal(size=(6, 5))
    found = over_tasks({str(i): list(row) for i, row in enumerate(values)}).middle
    assert found == pytest.approx(stats.trim_mean(values.ravel(), 0.25))


def test_the_interval_of_a_mean_over_tasks_is_that_of_welch() -> None:
    one, other = [0.3, 0.5, 0.1, 0.2], [-0.2, 0.4, 0.9]
    known = stats.ttest_ind(one, [-value for value in other], equal_var=False).confidence_interval(0.95)
    found = over_tasks({"a": one, "b": other}).mean
    assert (found.low, found.high) == pytest.approx((known.low / 2, known.high / 2))


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held = [i.low <= 0 <= i.high for i in (interval(list(random.normal(size=3))) for _ in range(1000))]
    assert 930 <= sum(held) <= 970


def test_seeds_are_paired(tmp_path: Path) -> None:
    written(tmp_path)
    by_seed = cells.all_cells(tmp_path, allow_dirty=False)["t", "short"][0.4]
    del by_seed["good"][1]
    gaps = cells.ahead({"t": by_seed})
    assert gaps["good"]["t"] == pytest.approx([0.02, 0.04])  # seeds 0 and 2


def test_the_expert_baseline_is_chosen_by_validation(tmp_path: Path) -> None:
    written(tmp_path)
    found = cells.all_cells(tmp_path, allow_dirty=False)["t", "short"][0.4]
    assert cells.expert(found) == "baseline + head rate"
    for run in found["baseline"].values():
        run |= {"validation_metric": 0.9, "test_metric": 0.1}
    assert cells.expert(found) == "baseline"
    del found["baseline"][2]  # it lacks a seed
    assert cells.expert(found) == "baseline + head rate"
    assert cells.expert({"good": found["good"]}) is None


def test_the_page_shows_losses_beside_gains(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "results" / "budgets"
    written(folder)
    written(folder, "brown", reference_seconds=45.0)
    kinds = KindsFile(folder / "kinds", "t")
    times = {"all": {"process_seconds": [1.0, 2.0], "wall_seconds": [1.0, 3.0]}}
    kinds.append({"setting": "baseline", "groups": [["all", 1]], "rows": 9, "times": times}, 1, MACHINE)
    text = report.page(folder)
    assert text is not None
    first = text.index("| good | **+3.0 (+0.5 to +5.5)** |")
    assert text.index("| expert baseline | 80.0: baseline + head rate |") < first
    behind = [
        text.index(f"| {name} | **{gap} ({gap} to {gap})** |")
        for name, gap in (("bad", "-5.0"), ("baseline", "-10.0"))
    ]
    assert [first, *behind] == sorted([first, *behind])
    assert "## Budget 0.4 of one epoch, tasks that were kept apart" in text
    assert "| baseline | all | 1.5000 (1.5000 to 1.5000) | 2.0000 | 1 |" in text
    assert "Machine: x, 1 thread of 2 cores, torch 2.13, commit aaaaaaa." in text
    marked = text[text.index("## Brown") :]
    assert r"| bad | 75.0 ± 0.0 \* | 3 | 0.1 \* | 30 | 1.00 |" in marked
    assert r"± 0.0 \*" not in text[: text.index("## Brown")]
    assert r"| baseline | 70.0 ± 0.0 | 3 | 0.1 | 30 | 1.00 |" in report.accuracies(
        cells.all_cells(folder, allow_dirty=False)["t", "short"],
        {name: {0.05: 0.1, 0.1: 0.5, 0.2: 0.2} for name in FAMILIES},
    )
    (tmp_path / "README.md").write_text("nothing to fill\n")
    assert Report(tmp_path).pages()[tmp_path / "docs" / "results" / "equal_time.md"] == text


def test_a_figure_needs_two_budgets(tmp_path: Path) -> None:
    folder, images = tmp_path / "benchmarks" / "results" / "budgets", tmp_path / "docs" / "results" / "images"
    written(folder)
    Report(tmp_path).draw()
    assert not list(images.iterdir())
    assert ".png" not in str(report.page(folder))
    written(folder, budget=0.8, reference_seconds=80.0)
    Report(tmp_path).draw()
    assert [path.name for path in images.iterdir()] == ["equal_time_t_short.png"]
    assert "](images/equal_time_t_short.png)" in str(report.page(folder))


def test_charges_are_compared_on_one_machine(tmp_path: Path) -> None:
    written(tmp_path)
    file = ResultsFile(tmp_path, "t", "short")
    for seed in (3, 4):
        elsewhere = {"machine": {**MACHINE, "processor": "y"}, "process_seconds": 400.0}
        file.append(result("bad", seed, 0.75, process_seconds=44.0))
        file.append(result("good", seed, 0.8, **(elsewhere if seed == 3 else {})))
        file.append(result("baseline + head rate", seed, 0.8, 0.76))
    found = cells.all_cells(tmp_path, allow_dirty=False)["t", "short"]
    lines = report.accuracies(found, {name: {0.05: 0.1, 0.1: 0.5, 0.2: 0.2} for name in FAMILIES}).splitlines()
    used = {line.split(" | ")[0]: line.split(" | ")[-1] for line in lines}
    assert (used["| bad"], used["| good"], used["| baseline + head rate"]) == ("1.04 |", "1.00 |", "1.00 |")
    (tmp_path / "t_short.jsonl").unlink()
    file = ResultsFile(tmp_path, "t", "short")
    file.append(result("bad", 100, 0.0, role="trial"))
    file.append(result("baseline", 100, 0.0, role="trial"))
    file.append(result("bad", 0, 0.75, **elsewhere))
    file.append(result("baseline", 0, 0.75))
    found = cells.all_cells(tmp_path, allow_dirty=False)["t", "short"]
    assert report.accuracies(found, {name: {0.1: 0.5} for name in FAMILIES}).splitlines()[2].endswith("| - |")


def test_a_contender_is_compared_over_tasks(tmp_path: Path) -> None:
    for task, shift in (("t", 0.0), ("u", 0.12)):
        written(tmp_path, task, shift)
    found = cells.all_cells(tmp_path, allow_dirty=False)
    table = report.comparison({task: budgets[0.4] for (task, _), budgets in found.items()})
    bad = next(line for line in table.splitlines() if line.startswith("| bad"))
    assert "| **+1.0 (+1.0 to +1.0)** | -5.0 t | +1.0 |" in bad
    assert bad.endswith("| 0.50 |")


def test_the_table_of_the_readme_has_equal_time_and_equal_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary_tables, "NEW_HEAD", "good")
    written(tmp_path)
    written(tmp_path, "sst2", shift=0.1, budget=1.0)
    runs = {0: {"test_metric": 0.5, "process_seconds": 2.0}}, {0: {"test_metric": 0.6, "process_seconds": 1.0}}
    steps = {("sst2", "short"): {"baseline": runs[0], summary_tables.DEFAULT: runs[1]}}
    lines = summary_tables.headline(tmp_path, "short", steps).splitlines()
    assert lines[0] == "| task | new head, 0.4 | new head, 1 | default, same steps |"
    assert lines[2:] == [
        "| SST-2 |  | **+3.0 (+0.5 to +5.5)** | +10.0 ± nan, 2.00x |",
        "| t | **+3.0 (+0.5 to +5.5)** |  |  |",
    ]


def test_a_table_has_all_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary_tables, "BY_BUDGET", {"good": "ours"})
    written(tmp_path, budget=1.0)
    written(tmp_path, "sst2", budget=0.25)
    written(tmp_path, "brown", budget=0.25)  # is kept apart, with a table of its own
    lines = summary_tables.by_budget(tmp_path, "short").splitlines()
    assert lines[0] == "| budget | task | expert baseline, % | its extras | the rule | the rule, no dropout | ours |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0.25", "| 1"]
    assert lines[2] == "| 0.25 | SST-2 | 80.0 | head rate |  |  | **+3.0 (+0.5 to +5.5)** |"
    (apart,) = summary_tables.by_budget(tmp_path, "short", report.KEPT_APART).splitlines()[2:]
    assert apart.startswith("| 0.25 | Brown, word classes | 80.0 |")


def test_losses_of_a_language_model_are_compared_with_standard_training(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "smollm2", "short")
    for name, shift in (("bad", 0.3), ("baseline", 0.2), ("good", 0.1)):
        file.append(result(name, 100, 0.0, task="smollm2", role="trial"))
        for seed in range(3):
            file.append(result(name, seed, 0.4, task="smollm2", test_loss=1.0 + shift * (1 + seed)))
    lines = summary_tables.losses(tmp_path, "short", "smollm2").splitlines()[2:]
    assert lines == [
        "| 0.4 | good | 3.3 | -0.200 (-0.448 to +0.048) | 3 |",
        "| 0.4 | baseline | 4.1 |  | 3 |",
        "| 0.4 | bad | 5.0 | +0.200 (-0.048 to +0.448) | 3 |",
    ]


def test_the_rule_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {
        (task, budget): summary_tables.chosen_by_rule(task, budget)
        for task in ("trec", "sst2", "brown")
        for budget in (0.4, 1.0, 1.1)
    }
    new_head, standard, start = summary_tables.NEW_HEAD, "baseline + head rate", "baseline + head rate + head start"
    assert chosen == {
        ("trec", 0.4): new_head, ("trec", 1.0): new_head, ("trec", 1.1): start,
        ("sst2", 0.4): new_head, ("sst2", 1.0): standard, ("sst2", 1.1): standard,
        ("brown", 0.4): start, ("brown", 1.0): start, ("brown", 1.1): start,
    }  # fmt: skip
    by_rule = {new_head, standard, start}
    assert by_rule | set(map(summary_tables.without_dropout, by_rule)) <= CONTENDERS.keys()
    assert {*TASKS} - LANGUAGE_MODELS <= summary_tables.LABELS_OF.keys()
    monkeypatch.setattr(summary_tables, "NEW_HEAD", "good")
    monkeypatch.setattr(summary_tables, "without_dropout", {"good": "bad", standard: "baseline"}.get)
    written(tmp_path, "sst2", budget=0.25)
    written(tmp_path, "imdb", budget=2.0)
    short, long = summary_tables.by_budget(tmp_path, "short").splitlines()[2:]
    assert "| top two blocks, **+3.0 (+0.5 to +5.5)** | top two blocks, **-5.0 (-5.0 to -5.0)** |" in short
    assert "| the expert baseline | standard, " in long


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    assert report.page(tmp_path) is None
    assert report.page(tmp_path / "missing") is None


def test_results_of_files_that_were_not_committed_are_refused(tmp_path: Path) -> None:
    ResultsFile(tmp_path, "t", "short").append(result("baseline", 0, 0.5, machine={**MACHINE, "dirty": True}))
    with pytest.raises(ValueError, match="not committed"):
        report.page(tmp_path)
