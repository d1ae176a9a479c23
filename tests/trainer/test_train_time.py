"""Times are read in the usual notations, and a plan is a function from steps to progress that a file keeps exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_multirate import MultirateTrainingArguments
from hf_multirate.config.durations import parse_seconds, shown_seconds
from hf_multirate.trainer.train_time import (
    FILE,
    TrainTimePlan,
    differences,
    train_time,
)
from tests.support.runs import DEFAULTS


NAME = "multirate_train_time"
WITHOUT_STEPS = {key: value for key, value in DEFAULTS.items() if key != "max_steps"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("20min", 1200.0),
        ("1h30m", 5400.0),
        ("90s", 90.0),
        ("90", 90.0),
        (90, 90.0),
        (0.5, 0.5),
        (np.float32(2.5), 2.5),
        ("1.5h", 5400.0),
        (".5 h", 1800.0),
        (" 2 hours 5 minutes 3 seconds ", 7503.0),
        ("1d", 86400.0),
        ("10 MIN", 600.0),
        ("1e3", 1000.0),
    ],
)
def test_times(value: Any, seconds: float) -> None:
    assert parse_seconds(NAME, value) == seconds


@pytest.mark.parametrize(
    "value", ["", "soon", "20 parsecs", "1h30", "30m1h", "min", "1:30:00", "-5min", "1h 1h", "½h"]
)
def test_times_that_cannot_be_read(value: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read as a time\. Give a time such as '20min'") as error:
        parse_seconds(NAME, value)
    assert f"{NAME} is {value!r}" in str(error.value)


@pytest.mark.parametrize("value", [0, -1, "0", "-3", "0s", "inf", float("inf"), "nan", "1e999"])
def test_times_that_are_no_duration(value: Any) -> None:
    with pytest.raises(ValueError, match=r"must be (above 0 seconds and finite|finite), got"):
        parse_seconds(NAME, value)


@pytest.mark.parametrize("value", [True, [60], {"minutes": 1}])
def test_times_of_another_type(value: Any) -> None:
    with pytest.raises(TypeError, match="multirate_train_time must be a time such as"):
        parse_seconds(NAME, value)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (59.0, "59 s"), (60, "1 min"), (3601, "1 h 1 s"), (119.7, "2 min")]
)
def test_durations_in_messages(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text


def plan(**changes: Any) -> TrainTimePlan:
    values = {"measured": [0.0, 0.03, 0.05], "totals": [(2, 40)], **changes}
    return TrainTimePlan(60.0, "everything", {"rows": 12}, **values)


def test_progress_is_measured_and_then_linear() -> None:
    progress = [plan().progress(step) for step in range(41)]
    assert progress[:3] == [0.0, 0.03, 0.05]
    assert np.diff(progress[2:]) == pytest.approx(0.95 / 38)
    assert progress[-1] == 1.0


@pytest.mark.parametrize("corrected", [25, 60])
def test_a_correction_changes_the_slope_only(corrected: int) -> None:
    changed = plan(totals=[(2, 40), (20, corrected)])
    progress = [changed.progress(step) for step in range(corrected + 1)]
    assert progress[:21] == [plan().progress(step) for step in range(21)]
    assert np.diff(progress[20:]) == pytest.approx((1.0 - progress[20]) / (corrected - 20))
    assert progress[-1] == 1.0
    assert [changed.total(step) for step in (1, 2, 19, 20, 25)] == [None, 40, 40, corrected, corrected]


def test_progress_stays_at_the_end() -> None:
    assert plan().progress(45) == 1.0


def test_a_file_keeps_every_bit(tmp_path: Path) -> None:
    before = plan(measured=[0.0, 1 / 3 / 10, 0.1 + 1e-17 + 0.2], totals=[(2, 40), (20, 31)])
    before.write(tmp_path / "new folder")
    after = TrainTimePlan.read(str(tmp_path / "new folder" / FILE))
    assert after == before
    assert [after.progress(step) for step in range(32)] == [before.progress(step) for step in range(32)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 2}, "format must be an integer from 1 to 1, got 2"),
        ({"seconds": "long"}, "seconds must be a number"),
        ({"counts": "some"}, "counts must be one of"),
        ({"measured": [0.1, 0.2, 0.3]}, "does not rise from 0"),
        ({"measured": [0.0, 0.5, 0.3]}, "does not rise from 0"),
        ({"measured": []}, "does not rise from 0"),
        ({"measured": [0.0, 0.3]}, "does not follow the measured steps"),
        ({"measured": [0.0, 0.5, 1.5]}, "does not follow the measured steps"),
        ({"totals": []}, "ended before the number of steps was settled"),
        ({"totals": [{"after_step": 2, "steps": 2}]}, "end before they were settled"),
        ({"totals": [{"after_step": 2, "steps": 9}] * 2}, "end before they were settled"),
        ({"totals": [{"after_step": 2, "steps": 9}, {"after_step": 9, "steps": 12}]}, "were corrected after the end"),
        ({"totals": [{"after": 2}]}, "lacks after_step"),
        ({"more": 1}, "unknown entries"),
    ],
)
def test_plans_that_are_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps(plan().to_dict() | changes))
    with pytest.raises(ValueError, match=f"cannot be used: .*{reason}.*Give the multirate_train_time.json of a run"):
        TrainTimePlan.read(str(path))


def test_a_plan_that_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used: it cannot be read"):
        TrainTimePlan.read(str(tmp_path / "missing.json"))
    (tmp_path / "text.json").write_text("seconds: 60")
    with pytest.raises(ValueError, match="cannot be used: it is not valid JSON"):
        TrainTimePlan.read(str(tmp_path / "text.json"))


def test_differences_name_both_values() -> None:
    assert differences({"rows": 1, "old": 2}, {"rows": 1}) == ""
    assert differences({"rows": 1, "processes": 2}, {"rows": 3, "processes": 1}) == (
        "processes is 2 in the plan and 1 now; rows is 1 in the plan and 3 now"
    )


def test_what_was_asked_for(tmp_path: Path) -> None:
    plan().write(tmp_path)
    path = str(tmp_path / FILE)
    assert train_time(None, None, None, max_steps=-1) is None
    asked = train_time("1min", None, None, max_steps=-1)
    assert asked is not None
    assert (asked.seconds, asked.counts, asked.plan) == (60.0, "everything", None)
    for time, counts in ((None, None), ("60s", "everything")):
        repeated = train_time(time, counts, path, max_steps=-1)
        assert repeated is not None
        assert (repeated.seconds, repeated.counts, repeated.plan) == (60.0, "everything", plan())


def test_arguments_that_contradict_each_other(tmp_path: Path) -> None:
    plan().write(tmp_path)
    path = str(tmp_path / FILE)

    def arguments(**settings: Any) -> MultirateTrainingArguments:
        return MultirateTrainingArguments(str(tmp_path), **(WITHOUT_STEPS | settings))

    with pytest.raises(ValueError, match="max_steps is 6 and multirate_train_time is given too"):
        arguments(multirate_train_time="1min", max_steps=6)
    with pytest.raises(ValueError, match="max_steps is 6 and multirate_train_time_plan is given too"):
        arguments(multirate_train_time_plan=path, max_steps=6)
    with pytest.raises(
        ValueError, match=r"but seconds is 60\.0 in the plan and 120\.0 now. Remove multirate_train_time"
    ):
        arguments(multirate_train_time_plan=path, multirate_train_time="2min")
    with pytest.raises(ValueError, match="counts is 'everything' in the plan and 'training' now"):
        arguments(multirate_train_time_plan=path, multirate_train_time_counts="training")
    with pytest.raises(ValueError, match="multirate_train_time is 'soon'"):
        arguments(multirate_train_time="soon")
    with pytest.raises(ValueError, match="multirate_train_time_counts must be one of"):
        arguments(multirate_train_time="1min", multirate_train_time_counts="steps")
    with pytest.raises(ValueError, match=r"multirate_train_time_plan is .*cannot be read"):
        arguments(multirate_train_time_plan=str(tmp_path / "none.json"))
    assert arguments(multirate_train_time=90).multirate_train_time == "90"
    assert arguments(multirate="off", multirate_train_time="1min").to_multirate_config().is_standard_training
