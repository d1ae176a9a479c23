"""The accuracy suite on a task of a few rows: what runs, what is kept, and what is repeated."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.accuracy import suite, tasks, worker_pool
from benchmarks.accuracy.baseline_interpolation import seconds
from benchmarks.accuracy.chosen_runs import chosen_runs, grids
from benchmarks.accuracy.methods import DEFAULT_METHODS, METHODS
from benchmarks.accuracy.results import ResultsFile
from benchmarks.accuracy.train_one import Spec
from tests.benchmarks.tiny_task import TINY, options


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = [rate * METHODS["LoRA"].rate_scale for rate in (1e-3, 1e-2)]


def kept(folder: Path, length: str = "short") -> list[dict[str, Any]]:
    return ResultsFile(folder, "tiny", length).runs


@pytest.mark.usefixtures("_tiny")
def test_every_method_runs_and_a_second_call_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("baseline", "LoRA", "LISA", "multirate last:1 k5 drift")
    suite.main(options(tmp_path, "--length", "short"))
    suite.main(options(tmp_path, "--methods", *both))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny_long.jsonl", "tiny_short.jsonl"]
    results = [*kept(tmp_path, "short"), *kept(tmp_path, "long")]
    assert len(results) == (len(DEFAULT_METHODS) + len(both)) * (2 + 2)
    for result in results:
        assert (result["role"] == "trial") == ("test_metric" not in result)
        whole = 6 * {"short": 1, "long": 2}[result["length"]]
        assert result["steps"] == round(whole * METHODS[result["method"]].fraction)
        assert sum(phase["steps"] for phase in result["phases"].values()) == result["steps"]
        assert result["process_seconds"] > 0
        assert len(result["machine"]["commit"]) == 40
        if result["role"] == "final":
            assert result["curve"][-1]["metric"] == result["test_metric"]
            assert result["curve"][-1]["step"] == result["steps"]

    def nothing(*args: Any) -> None:
        raise AssertionError(args)

    before = (tmp_path / "tiny_short.jsonl").read_bytes()
    monkeypatch.setattr(suite, "run", nothing)
    suite.main(options(tmp_path, "--length", "short"))
    suite.main(options(tmp_path, "--methods", *both))
    assert (tmp_path / "tiny_short.jsonl").read_bytes() == before
    monkeypatch.setitem(tasks.TASKS, "tiny", TINY.__class__(**{**vars(TINY), "batch_size": 3}))
    with pytest.raises(SystemExit, match="another configuration"):
        suite.main(options(tmp_path))


@pytest.mark.usefixtures("_tiny")
def test_a_suite_that_was_killed_while_it_wrote_repeats_only_the_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(tmp_path, "--methods", "baseline", "--length", "short")
    suite.main(words)
    path = tmp_path / "tiny_short.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    repeated = []
    run = suite.run
    monkeypatch.setattr(suite, "run", lambda spec, folder: (repeated.append(spec), run(spec, folder))[1])
    suite.main(words)
    assert "the last line is incomplete" in capsys.readouterr().err
    assert [(spec.role, spec.seed) for spec in repeated] == [("final", 1)]
    lines = path.read_text().splitlines()
    assert len(lines) == len(whole.splitlines())
    assert all(json.loads(line) for line in lines)


@pytest.mark.usefixtures("_tiny")
def test_a_method_takes_its_best_rate_on_validation_rows_to_all_seeds(tmp_path: Path) -> None:
    suite.main(options(tmp_path, "--methods", "baseline", "LoRA", "--length", "short"))
    found = grids(kept(tmp_path))
    assert {name: sorted(grid) for name, grid in found.items()} == {"baseline": [1e-3, 1e-2], "LoRA": LORA}
    for method, runs in chosen_runs(tmp_path, allow_dirty=True)["tiny", "short"].items():
        best = min(rate for rate in found[method] if found[method][rate] == max(found[method].values()))
        assert {run["rate"] for run in runs.values()} == {best}
        assert sorted(runs) == [0, 1]


def test_rates_are_chosen_by_validation_and_of_equal_ones_the_lowest() -> None:
    scores = {("baseline", 1.0): 0.5, ("baseline", 2.0): 0.7, ("LoRA", 1.0): 0.6, ("LoRA", 3.0): 0.6}
    results = {
        Spec("tiny", "short", name, rate, 100, "trial"): {
            "method": name, "rate": rate, "role": "trial", "validation_metric": score,
        }
        for (name, rate), score in scores.items()
    }  # fmt: skip
    assert suite.chosen_rates(results) == {"baseline": 2.0, "LoRA": 1.0}


@pytest.mark.usefixtures("_tiny")
def test_the_baseline_is_run_beside_methods_of_another_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(commit: str, *methods: str) -> list[tuple[str, str]]:
        monkeypatch.setattr(machine, "commit", lambda out, allow_dirty: {"commit": commit, "dirty": False})
        before = len(kept(tmp_path))
        suite.main(options(tmp_path, "--length", "short", "--methods", *methods))
        new = kept(tmp_path)[before:]
        assert {run["machine"]["commit"] for run in new} <= {commit}
        return [(run["method"], run["role"]) for run in new]

    for method in ("head only", "BAdam"):  # the second finds the baseline of its own commit
        assert not [role for _, role in measured("a" * 40, "baseline", method) if role == "reference"]
    new = measured("b" * 40, "baseline", "LISA")
    assert new.count(("baseline", "reference")) == 2
    assert len(new) == 2 + 2 + 2  # references, and trials and finals of LISA
    assert not measured("b" * 40, "baseline", "LISA")  # all is there
    assert not measured("c" * 40, "LISA")  # nothing to run needs no reference
    reference = min(run["process_seconds"] for run in kept(tmp_path) if run["role"] == "reference")
    finals = [run for run in kept(tmp_path) if run["role"] == "final"]
    lisa = min(run["process_seconds"] for run in finals if run["method"] == "LISA")
    runs = chosen_runs(tmp_path)["tiny", "short"]
    expected = lisa * seconds(runs["baseline"].values()) / reference
    assert seconds(runs["LISA"].values()) == pytest.approx(expected)


def test_files_that_are_not_committed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"status": " M hf_multirate/drift.py", "rev-parse": "abc"}
    monkeypatch.setattr(machine, "git", lambda *words: answers[words[0]])
    with pytest.raises(machine.UncommittedFilesError, match="differ from the commit"):
        machine.commit(tmp_path, allow_dirty=False)
    assert machine.commit(tmp_path, allow_dirty=True) == {"commit": "abc", "dirty": True}
    answers["status"] = ""
    assert machine.commit(tmp_path, allow_dirty=False) == {"commit": "abc", "dirty": False}


def test_after_an_error_waiting_runs_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    begun: list[int] = []
    waiting = []

    def fails() -> None:
        with worker_pool.workers(1) as running:
            gate = threading.Event()
            running.submit(gate.wait)
            waiting.append(running.submit(begun.append, 1))
            threading.Timer(0.1, gate.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert waiting[0].cancelled()
    assert not begun


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"there is no 'trec_train.*in --data-dir"):
        suite.main(["--suite", "trec", "--allow-dirty", "--jobs", "0", "--data-dir", str(tmp_path)])
