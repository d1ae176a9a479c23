"""Tables of accuracy say what the runs say, by figures that can be checked by hand."""

from __future__ import annotations

from statistics import fmean

import pytest
from scipy import stats

from benchmarks.accuracy import outcome_tables as tables
from benchmarks.accuracy.baseline_interpolation import ahead, at, baseline_by_time, time_to
from benchmarks.tables import table, with_quartiles
from tests.benchmarks.made_up_runs import RUNS, result


def test_readings_are_those_made_by_hand() -> None:
    # Baseline in 7.5 s: half way from .6 at 5 s to .8 (.82) at 10 s, .70 (.71), so .03 (.04) ahead.
    assert ahead(RUNS, "multirate head k5 drift") == pytest.approx((0.035, 0.005))
    assert ahead(RUNS, "head only") is None  # faster than the shortest baseline run
    run = RUNS["multirate head k5 drift"][0]
    assert [at(run, time) for time in (2, 3, 7, 8)] == [None, 0.5, 0.5, 0.73]
    assert time_to(run, 0.615) == pytest.approx(5.25)
    assert time_to(run, 0.4) == 3
    assert time_to(run, 0.74) is None


def test_a_seed_that_the_baseline_does_not_have_is_named() -> None:
    more = RUNS["head only"] | {7: result("head only", 7, [(9, 0.6)])}
    with pytest.raises(ValueError, match=r"'head only' has the seeds \[7\], the baseline does not"):
        ahead({**RUNS, "head only": more}, "head only")


def test_a_baseline_run_that_is_no_better_than_a_shorter_one_is_dropped() -> None:
    runs = RUNS | {"baseline 0.7": {s: result("baseline 0.7", s, [(3, 0.4), (7, 0.5 + 0.19 * s)]) for s in (0, 1)}}
    assert baseline_by_time(runs, [1]) == [(5, 0.6), (10, pytest.approx(0.82))]
    assert ahead(runs, "multirate head k5 drift") == ahead(RUNS, "multirate head k5 drift")
    better = RUNS | {"baseline 0.7": {s: result("baseline 0.7", s, [(3, 0.4), (7, 0.5 + 0.21 * s)]) for s in (0, 1)}}
    assert baseline_by_time(better, [0, 1])[1] == (7, pytest.approx(0.605))


def test_the_table_over_all_tasks() -> None:
    other = {name: RUNS[name] for name in ("baseline", "baseline 0.5")}
    found = {("a", "short"): RUNS, ("b", "short"): other, ("c", "long"): RUNS}
    lines = tables.all_tasks(found, "short").splitlines()
    assert lines[0] == "| method | a | b | speed-up |"
    assert lines[2:] == ["| multirate head k5 drift | +3.5 ± 0.5 |  | 1.3 |"]
    assert tables.all_tasks({}, "short") == "Not run yet."


def test_at_equal_steps_a_method_is_compared_with_the_baseline_of_its_seed() -> None:
    assert tables.at_equal_steps(RUNS, "missing") == ""
    assert tables.at_equal_steps({}, "baseline") == ""
    assert tables.at_equal_steps(RUNS, "baseline") == "+0.0 ± 0.0, 1.00x"
    method = "multirate head k5 drift"
    gaps = [100 * (run["test_metric"] - RUNS["baseline"][seed]["test_metric"]) for seed, run in RUNS[method].items()]
    assert tables.at_equal_steps(RUNS, method) == f"{fmean(gaps):+.1f} ± {stats.sem(gaps):.1f}, 1.33x"


def test_outcome_and_budgets() -> None:
    rates = {name: {1e-3: 0.1, 1e-2: 0.2, 1e-4: 0.1} for name in RUNS} | {"baseline": {1e-3: 0.1, 1e-2: 0.2}}
    lines = tables.outcome(RUNS, rates).splitlines()[2:]
    assert lines == [
        "| head only | 0.001 | 81.0 ± 0.0 | 2 | 4.00 |  |  | 0.25 |",
        "| baseline 0.5 | 0.001 | 60.0 ± 0.0 | 5 | 2.00 |  |  | 0 of 2 seeds |",
        "| multirate head k5 drift | 0.001 | 74.0 ± 1.4 | 8 | 1.33 | 70.5 | +3.5 ± 0.5 | 0 of 2 seeds |",
        "| baseline | 0.001\\* | 81.0 ± 1.4 | 10 | 1.00 |  |  | 1 of 2 seeds |",
    ]
    assert tables.budgets(RUNS).splitlines()[2:] == [
        "| baseline, schedule of that length |  |  | 64.2 | 72.6 | 81.0 |",
        "| baseline |  |  | 50.0 | 50.0 | 81.0 |",
        "| multirate head k5 drift |  | 60.0 | 60.0 | 74.0 | 74.0 |",
        "| head only | 30.0 | 81.0 | 81.0 | 81.0 | 81.0 |",
    ]


def test_automatic_periods_are_beside_the_best_fixed_setting_that_takes_no_longer() -> None:
    runs = {
        **RUNS,
        "multirate slow": {0: result("multirate slow", 0, [(9.0, 0.9)])},
        "auto 2": {s: result("auto 2", s, [(7.4, 0.72 + 0.02 * s)]) for s in (0, 1)},
        "auto 3": {s: result("auto 3", s, [(6.0, 0.6)]) for s in (0, 1)},
    }
    assert tables.automatic(runs).splitlines()[2:] == [
        "| 2 | 1.35 | 73.0 ± 1.4 | 70.1 | +2.9 ± 0.5 | multirate head k5 drift | 74.0 ± 1.4 |",
        "| 3 | 1.67 | 60.0 ± 0.0 | 64.2 | -4.2 ± 0.2 |  |  |",
    ]
    assert tables.automatic(RUNS) == ""


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", ""]]) == "| a | b |\n|---|---|\n| 1 |  |"
    with pytest.raises(ValueError, match="1 cells, the header 2"):
        table(["a", "b"], [["1"]])
    assert with_quartiles([1.0, 2.0, 3.0, 4.0]) == "2.50 (1.25 to 3.75)"
    assert with_quartiles([1.0]) == "1.00"
