"""Seconds of several days and processors are made comparable by baseline runs."""

from __future__ import annotations

import pytest

from benchmarks.accuracy.baseline_interpolation import at
from benchmarks.accuracy.machine_correction import corrected, reference_seconds, undisturbed
from tests.benchmarks.made_up_runs import RUNS, result


def test_other_work_of_the_machine_does_not_count() -> None:
    runs = {0: result("baseline", 0, [(5, 0.5), (10, 0.8)]), 1: result("baseline", 1, [(7, 0.6), (14, 0.9)])}
    found = undisturbed(runs)
    assert [run["process_seconds"] for run in found.values()] == [10, 10]
    assert [point["process_seconds"] for point in found[1]["curve"]] == [5, 10]
    assert at(found[1], 10) == 0.9


def test_seconds_of_other_days_and_processors_are_those_beside_the_baseline() -> None:
    curve = [(5.0, 0.5), (10.0, 0.8)]
    runs = {
        "baseline": {s: result("baseline", s, [(9.0 + s, 0.8), (18.0 + s, 0.9)]) | {"steps": 180} for s in (0, 1)},
        "same day": {0: result("same day", 0, curve)},
        "slow day": {0: result("slow day", 0, curve, commit="b")},
        "day without a reference": {0: result("day without a reference", 0, curve, commit="c")},
        "slow processor": {0: result("slow processor", 0, curve, commit="b", cpu="y")},
        "other day of it": {0: result("other day of it", 0, curve, commit="c", cpu="y")},
    }
    references = {("b", "x"): 20.0, ("b", "y"): 36.0}
    found = corrected(runs, references)
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    assert took == pytest.approx(
        {
            "baseline": 18.0, "same day": 10.0, "slow day": 9.0, "day without a reference": 10.0,
            "slow processor": 5.0, "other day of it": 5.0,
        }
    )  # fmt: skip
    assert [point["process_seconds"] for point in found["slow day"][0]["curve"]] == pytest.approx([4.5, 9.0])
    assert found["baseline"][1]["process_seconds"] == 18.0
    with pytest.raises(ValueError, match="'slow processor' of t, short, was run on 'y', the baseline was not"):
        corrected(runs, {})


def test_a_method_has_the_speed_up_over_its_own_reference_and_moves_no_other() -> None:
    curve = [(5.0, 0.5), (10.0, 0.8)]
    runs = {
        "baseline": {0: result("baseline", 0, [(20.0, 0.9)]) | {"steps": 180}},
        "baseline 0.5": {0: result("baseline 0.5", 0, [(9.0, 0.7)]) | {"steps": 90}},
        "with": {0: result("with", 0, curve, commit="b")},
        "without": {0: result("without", 0, curve, commit="c")},
    }
    found = corrected(runs, {("b", "x"): 15.0})
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    # A step of the shorter run takes .1 s, so the baseline counts with 18 s.
    assert took == pytest.approx({"baseline": 18.0, "baseline 0.5": 9.0, "with": 18.0 / 1.5, "without": 10.0})


def test_a_reference_on_files_that_were_not_committed_does_not_count() -> None:
    runs = [
        result("baseline", seed, [(took, 0.9)], commit="b") | {"role": "reference"}
        for seed, took in ((0, 5.0), (1, 7.0))
    ]
    runs[0]["machine"] = {**runs[0]["machine"], "dirty": True}
    assert reference_seconds(runs, allow_dirty=False) == {("b", "x"): 7.0}
    assert reference_seconds(runs, allow_dirty=True) == {("b", "x"): 5.0}
    assert reference_seconds([run | {"role": "final"} for run in runs], allow_dirty=True) == {}


def test_baseline_runs_count_with_the_fastest_step_of_any_that_is_no_longer() -> None:
    runs = RUNS | {"baseline 0.8": {0: result("baseline 0.8", 0, [(3.0, 0.5), (6.0, 0.7)]) | {"steps": 80}}}
    found = corrected(runs, {})
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    assert took == pytest.approx(
        {
            "baseline": 7.5, "baseline 0.8": 6.0, "baseline 0.5": 5.0, "multirate head k5 drift": 7.5,
            "head only": 2.5,
        }
    )  # fmt: skip
    assert found["baseline"][0]["curve"][0]["process_seconds"] == pytest.approx(3.75)
