"""Files of results: one line a run, shared lines once, and damage that is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.methods import METHODS, RECORDED
from benchmarks.accuracy.results import RESULTS, ResultsFile, read_results
from benchmarks.accuracy.suite import TRIAL_SEED
from benchmarks.accuracy.train_one import Spec
from benchmarks.jsonl import append_lines, read_lines
from tests.benchmarks.made_up_runs import RUNS, result


ALL = [run for by_seed in RUNS.values() for run in by_seed.values()]


def written(folder: Path, runs: list[dict[str, Any]]) -> Path:
    file = ResultsFile(folder, "t", "short")
    for run in runs:
        file.append(run)
    return file.path


def test_what_is_written_is_read_and_shared_lines_are_written_once(tmp_path: Path) -> None:
    later = result("LISA", 0, [(1.0, 0.5)], commit="b")
    path = written(tmp_path, ALL[:3])
    written(tmp_path, [*ALL[3:], later])  # by another process
    assert ResultsFile(tmp_path, "t", "short").runs == [*ALL, later]
    kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"task": 1, "method": 5, "machine": 2, "run": len(ALL) + 1}
    assert [file.path for file in read_results(tmp_path)] == [path]


def test_half_a_last_line_is_dropped_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ALL[:2])
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    file = ResultsFile(tmp_path, "t", "short")
    assert file.runs == ALL[:1]
    assert f"{path}: the last line is incomplete" in capsys.readouterr().err
    file.append(ALL[1])
    assert path.read_bytes() == whole


def test_a_last_line_without_a_line_break_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ALL[:2])
    path.write_bytes(path.read_bytes()[:-1])
    file = ResultsFile(tmp_path, "t", "short")
    file.append(ALL[2])
    assert ResultsFile(tmp_path, "t", "short").runs == ALL[:3]
    assert not capsys.readouterr().err


def test_damage_within_a_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, ALL[:2])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2][:20] + "\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"t_short.jsonl, line 3 is not a JSON object"):
        ResultsFile(tmp_path, "t", "short")
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=r"line 3 names .*, which no line before it has"):
        ResultsFile(tmp_path, "t", "short")
    path.write_text('{"kind": "other"}\n')
    with pytest.raises(ValueError, match="kind 'other', expected one of run, task, method, machine"):
        ResultsFile(tmp_path, "t", "short")


@pytest.mark.parametrize("part", ["task", "method"])
def test_other_settings_are_refused(tmp_path: Path, part: str) -> None:
    path = written(tmp_path, ALL[:1])
    before = path.read_bytes()
    other = {**ALL[1], "settings": {**ALL[1]["settings"], part: {"epochs": 7}}}
    with pytest.raises(ValueError, match="in another configuration"):
        ResultsFile(tmp_path, "t", "short").append(other)
    assert path.read_bytes() == before


def test_lines_of_any_kind_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lines.jsonl"
    append_lines(path, [{"a": 1}, {"b": 0.1}])
    append_lines(path, [{"c": "ü"}])
    assert read_lines(path) == [{"a": 1}, {"b": 0.1}, {"c": "ü"}]
    with pytest.raises(ValueError, match="Out of range float"):
        append_lines(path, [{"d": float("nan")}])


def test_kept_results_are_of_the_present_methods_and_tasks() -> None:
    files = list(read_results(RESULTS))
    assert files
    for file in files:
        for run in file.runs:
            spec = Spec(*(run[name] for name in Spec.__dataclass_fields__))
            if run["method"] not in RECORDED:  # whose settings exist no more
                assert run["settings"] == spec.settings(), spec
            assert (run["seed"] == TRIAL_SEED) == (run["role"] == "trial")
            assert run["method"] in (*METHODS, *RECORDED)
            assert not run["machine"]["dirty"]
