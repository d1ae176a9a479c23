"""Seconds of a resumed run are those of all its steps, whatever was logged before."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_multirate import MultirateConfig
from hf_multirate.reporting.run_record import read_record
from hf_multirate.trainer.resumed_seconds import seconds_until
from tests.support.runs import CONFIG, trainer_for


SAVED: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "logging_steps": 500}


@pytest.mark.parametrize("ended", [4, 6])
def test_steps_without_a_log_entry_count(tmp_path: Path, ended: int) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    settings = {**SAVED, "max_steps": ended}
    trainer_for(first, MultirateConfig.two_rate("head", 2, head_start=2), **settings).train()
    shutil.copytree(first, again)
    resumed = trainer_for(again, MultirateConfig.two_rate("head", 2, head_start=2), **SAVED)
    resumed.train(resume_from_checkpoint=str(again / "checkpoint-4"))
    record = read_record(again)
    assert len(record.steps["seconds"]) == record.summary["steps"] == 6
    aside = record.summary["seconds_aside"]
    assert aside["head_start"] == pytest.approx(read_record(first).summary["head_start"]["seconds"], abs=1e-3)
    assert record.summary["seconds"] >= sum(record.steps["seconds"]) + aside["head_start"] - 1e-3


def test_seconds_are_exact_if_the_record_ends_there_and_else_go_on_from_the_last_log_entry(tmp_path: Path) -> None:
    trainer_for(tmp_path, CONFIG, max_steps=3).train()
    record = copy.deepcopy(read_record(tmp_path))
    record.steps["seconds"] = [1.0, 2.0, 4.0]
    record.summary |= {"seconds": 100.0, "seconds_aside": {"data": 5.0}}
    logs = [{"step": 1, "seconds": 20.0, "seconds_of_data": 0.5}]
    assert seconds_until(record, 3, logs) == (100.0, {"data": 5.0})
    assert seconds_until(record, 2, logs) == (22.0, {"data": 0.5})
    assert seconds_until(record, 2, []) == (3.0, {})
    record.summary["seconds_aside"]["head_start"] = 7.0
    assert seconds_until(record, 2, []) == (10.0, {"head_start": 7.0})
    record.start_step = 10
    assert seconds_until(record, 2, [{"step": 11, "seconds": 20.0}]) == (22.0, {})
