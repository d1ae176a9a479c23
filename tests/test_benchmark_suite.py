"""The benchmark on a task of a few rows: what runs, what is kept, and that the tables say what the files say."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import report
import run as suite
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, set_seed

import answer
import curves
import images
import pool
import sessions
import tasks
import training
from contenders import CHOSEN, CONTENDERS, importance
from contenders.blocks import LISA, BAdam
from contenders.importance import draw
from tests.support.runs import FIVE
from tests.support.tiny import tokenizer


pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(not FIVE, reason="the benchmark is of transformers 5, whose names of arguments it uses"),
]

LORA = [rate * CONTENDERS["LoRA"].rate_scale for rate in (1e-3, 1e-2)]
AUTO = ("multirate last:1 k5 all", "auto 1.6")
TINY = tasks.Task("tiny", (1e-3, 1e-2), seeds=2, batch_size=2, epochs=(("short", 1), ("long", 2)))


def network(seed: int) -> nn.Module:
    set_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes))


def load(*_: Any) -> tasks.Data:
    rows = [{"input_ids": [3 + (i * j) % 30 for j in range(3 + i % 4)], "labels": i % 3} for i in range(20)]
    parts = [Dataset.from_list(rows[a:b]) for a, b in ((0, 12), (12, 16), (16, 20))]
    return tasks.Data(*parts, DataCollatorWithPadding(tokenizer()), network, by_length=True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "tiny", TINY)
    monkeypatch.setattr(training, "load", load)
    training._loaded.clear()


def options(out: Path, *more: str) -> list[str]:
    words = ["--suite", "embedded", "--jobs", "0", "--quiet", "--allow-dirty", "--out", str(out), *more]
    return ["tiny" if word == "embedded" else word for word in words]


def test_every_contender_runs_and_a_second_call_runs_nothing(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.main(options(tmp_path))
    files = sorted(tmp_path.glob("*.json"))
    assert len(files) == len(CHOSEN) * (2 + 2) * 2
    results = [json.loads(path.read_text()) for path in files]
    for result in results:
        kept = result["spec"]
        assert (kept["role"] == "trial") == ("test_metric" not in result)
        whole = 6 * {"short": 1, "long": 2}[kept["length"]]
        assert result["steps"] == round(whole * CONTENDERS[kept["contender"]].fraction)
        assert sum(phase["steps"] for phase in result["phases"].values()) == result["steps"]
        assert result["process_seconds"] > 0
        assert len(result["commit"]) == 40
        if kept["role"] == "final":
            assert result["curve"][-1]["metric"] == result["test_metric"]
            assert result["curve"][-1]["step"] == result["steps"]

    def nothing(*args: Any) -> None:
        raise AssertionError(args)

    monkeypatch.setattr(suite, "run", nothing)
    suite.main(options(tmp_path))
    monkeypatch.setitem(tasks.TASKS, "tiny", TINY.__class__(**{**vars(TINY), "batch_size": 3}))
    with pytest.raises(tasks.InputError, match="another configuration"):
        suite.main(options(tmp_path))


def test_the_file_of_automatic_training_has_its_plans(tiny: None) -> None:
    plans = [training.run(training.Spec("tiny", "long", name, 1e-3, 0, "trial"), None)["plans"] for name in AUTO]
    assert [[plan["start"] for plan in found] for found in plans] == [[], [0, 1]]


def test_a_contender_takes_its_best_rate_on_validation_rows_to_all_seeds(tiny: None, tmp_path: Path) -> None:
    suite.main(options(tmp_path, "--contenders", "plain", "LoRA", "--length", "short"))
    grids = curves.grids(tmp_path)
    assert {name: sorted(grid) for (*_, name), grid in grids.items()} == {"plain": [1e-3, 1e-2], "LoRA": LORA}
    for contender, runs in curves.finals(tmp_path, dirty=True)["tiny", "short"].items():
        grid = grids["tiny", "short", contender]
        best = min(rate for rate in grid if grid[rate] == max(grid.values()))
        assert {run["spec"]["rate"] for run in runs.values()} == {best}
        assert sorted(runs) == [0, 1]


def test_a_task_in_bfloat16_trains_all_contenders_in_mixed_precision(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tasks.TASKS, "tiny_bf16", dataclasses.replace(TINY, name="tiny_bf16"))
    mixed: set[bool] = set()
    forward = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        mixed.add(torch.is_autocast_enabled("cpu"))
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    for task, name in itertools.product(("tiny", "tiny_bf16"), ("plain", "multirate head k5 all")):
        mixed.clear()
        result = training.run(training.Spec(task, "short", name, 1e-3, 0, "trial"), None)
        assert mixed == {task == "tiny_bf16"}
        assert result["precision"] == {"tiny": "float32", "tiny_bf16": "bfloat16"}[task]
    assert {task.name for task in tasks.TASKS.values() if task.bf16} >= {"trec_bf16", "embedded_bf16"}


def test_idle_parts_of_a_contender_run_in_bfloat16_where_its_name_says_so(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    forward = torch.nn.Linear.forward

    def noted(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        dtypes.add(self.weight.dtype)
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)

    def used(name: str) -> set[torch.dtype]:
        dtypes.clear()
        training.train(training.Spec("tiny", "short", name, 1e-3, 0, "trial"), load())
        return dtypes.copy()

    assert used("multirate last:1 k5 none") == {torch.float32}
    assert used("multirate last:1 k5 none bfloat16") == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(
    "contender", ["LoRA", "head only", "LISA", "multirate head k5 all", "multirate last:1 k5 none"]
)
def test_every_contender_sees_the_batches_of_plain_training(tiny: None, contender: str) -> None:
    def batches(name: str, seed: int) -> list[list[list[int]]]:
        data, seen = load(), []

        def collator(rows: list[dict[str, Any]]) -> Any:
            seen.append([row["input_ids"] for row in rows])
            return data.collator(rows)

        spec = training.Spec("tiny", "long", name, 1e-3, seed, "trial")
        training.train(spec, dataclasses.replace(data, collator=collator))
        return seen[:12]  # two epochs; what follows are validation rows

    plain = batches("plain", 0)
    assert batches(contender, 0) == plain
    assert batches(contender, 1) != plain
    assert plain[:6] != plain[6:]


def test_drawn_samples_stand_for_all() -> None:
    values, scores = torch.tensor([1.0, -3.0, 5.0, 0.5]), torch.tensor([0.1, 2.0, 0.4, 1.0])
    chosen, weights = draw(scores, 40_000, torch.Generator().manual_seed(0))
    assert (values[chosen] * weights).mean() == pytest.approx(values.mean().item(), abs=0.05)
    assert torch.bincount(chosen) / len(chosen) == pytest.approx((scores / scores.sum()).numpy(), abs=0.01)


def test_refreshes_draw_from_the_batches_of_their_cycle(tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def drawing(scores: torch.Tensor, rows: int, generator: torch.Generator) -> Any:
        sizes.append((len(scores), rows))
        return draw(scores, rows, generator)

    monkeypatch.setattr(importance, "draw", drawing)
    spec = training.Spec("tiny", "long", "multirate last:1 k5 importance", 1e-3, 0, "trial")
    training.train(spec, load())
    assert sizes
    assert all(pool == 5 * rows for pool, rows in sizes)


def test_rates_are_chosen_by_validation_and_of_equal_ones_the_lowest() -> None:
    def spec(name: str, rate: float) -> training.Spec:
        return training.Spec("tiny", "short", name, rate, 100, "trial")

    scores = {spec("plain", 1.0): 0.5, spec("plain", 2.0): 0.7, spec("LoRA", 1.0): 0.6, spec("LoRA", 3.0): 0.6}
    assert suite.chosen_rates({s: {"validation_metric": v} for s, v in scores.items()}) == {"plain": 2.0, "LoRA": 1.0}


def test_files_that_are_not_committed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"status": " M hf_multirate/drift.py", "rev-parse": "abc"}
    monkeypatch.setattr(suite, "_git", lambda *words: answers[words[0]])
    with pytest.raises(tasks.InputError, match="differ from the commit"):
        suite.commit(tmp_path, dirty=False)
    assert suite.commit(tmp_path, dirty=True) == {"commit": "abc", "dirty": True}
    answers["status"] = ""
    assert suite.commit(tmp_path, dirty=False) == {"commit": "abc", "dirty": False}


def test_after_an_error_waiting_runs_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
    begun: list[int] = []
    waiting = []

    def fails() -> None:
        with pool.workers(1) as running:
            gate = threading.Event()
            running.submit(gate.wait)
            waiting.append(running.submit(begun.append, 1))
            threading.Timer(0.1, gate.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert waiting[0].cancelled()
    assert not begun


def test_data_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(tasks.InputError, match=r"there is no 'trec_train.*in --data-dir"):
        suite.main(["--suite", "trec", "--allow-dirty", "--jobs", "0", "--data-dir", str(tmp_path)])
    elsewhere = dataclasses.replace(tasks.TASKS["trec"], needs=(str(tmp_path / "data"),))
    assert tasks.missing(elsewhere, None) == f"there is no {str(tmp_path / 'data')!r}"
    (tmp_path / "data").mkdir()
    assert tasks.missing(elsewhere, None) is None


@pytest.mark.parametrize("name", ["embedded", "imdb"])
def test_no_text_is_in_two_parts(name: str) -> None:
    data = tasks.load(tasks.TASKS[name], None)
    parts = [{tuple(row["input_ids"]) for row in part} for part in (data.train, data.validation, data.test)]
    assert len(data.train) == tasks.TASKS[name].train_rows
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert 0.4 < sum(row["labels"] for row in data.train) / len(data.train) < 0.6


def test_images_of_fashion_are_read_with_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = bytes(range(10)) + bytes(2 * 28 * 28 - 10)
    for name, header, body in (("images-idx3", 16, grey), ("labels-idx1", 8, bytes([7, 3]))):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + body))
    monkeypatch.setattr(images, "FASHION", str(tmp_path))
    rows = images.fashion(tmp_path, 28, "test", 2)
    assert [row["labels"] for row in rows] == [7, 3]
    assert rows[0]["pixel_values"].shape == (28, 28, 3)
    assert rows[0]["pixel_values"][0, :10, 1].tolist() == list(range(10))
    batch = images.batch(rows)["pixel_values"]
    assert batch.shape == (2, 3, 28, 28)
    assert batch[0, 1, 0, 9] == pytest.approx(9 - 255 * 0.459)


@pytest.mark.parametrize("kind", [LISA, BAdam])
def test_block_methods_train_what_they_say(kind: type) -> None:
    model = network(0)
    more = {"active": 2} if kind is LISA else {}
    callback = kind(model, interval=3, seed=0, **more)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(9):
        callback.on_step_begin(None, SimpleNamespace(global_step=step), None, optimizer=optimizer)
        before = {name: [p.clone() for p in part] for name, part in callback.parts.items()}
        model(input_ids=torch.tensor([[3, 4]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {
            name
            for name, part in callback.parts.items()
            if any(not torch.equal(p, old) for p, old in zip(part, before[name], strict=True))
        }
        assert moved == set(callback.live)
        seen.append(moved)
    assert all(seen[i] == seen[i - i % 3] for i in range(9))
    assert len({frozenset(moved) for moved in seen}) > 1
    if kind is LISA:
        assert all(len(moved) == 3 and "outside" in moved for moved in seen)
    else:
        assert all(len(moved) == 1 for moved in seen)
        assert set(optimizer.state) == set(callback.parts[callback.live[0]])  # of others nothing is kept
    callback.on_train_end(None, None, None)
    assert all(parameter.requires_grad for parameter in model.parameters())


def _result(
    contender: str, seed: int, curve: list[tuple[float, float]], rate: float = 1e-3, commit: str = "a", cpu: str = "x"
) -> dict[str, Any]:
    points = [{"process_seconds": when, "metric": value} for when, value in curve]
    return {
        "spec": {"task": "t", "length": "short", "contender": contender, "seed": seed, "rate": rate},
        "dirty": False, "curve": points, "process_seconds": curve[-1][0], "test_metric": curve[-1][1],
        "commit": commit, "hardware": {"processor": cpu}, "steps": round(10 * curve[-1][0]),
    }  # fmt: skip


RUNS = {
    "plain": {s: _result("plain", s, [(5, 0.5), (10, 0.8 + 0.02 * s)]) for s in (0, 1)},
    "plain 0.5": {s: _result("plain 0.5", s, [(2, 0.4), (5, 0.6)]) for s in (0, 1)},
    "multirate head k5 all": {
        0: _result("multirate head k5 all", 0, [(3, 0.5), (7.5, 0.73)]),
        1: _result("multirate head k5 all", 1, [(4, 0.7), (7.5, 0.75)]),
    },
    "head only": {s: _result("head only", s, [(1, 0.3), (2.5, 0.81)]) for s in (0, 1)},
}


def test_readings_are_those_made_by_hand() -> None:
    # Plain in 7.5 s: half way from .6 at 5 s to .8 (.82) at 10 s, .70 (.71), so .03 (.04) ahead.
    assert curves.ahead(RUNS, "multirate head k5 all") == pytest.approx((0.035, 0.005))
    assert curves.ahead(RUNS, "head only") is None  # faster than the shortest plain run
    run = RUNS["multirate head k5 all"][0]
    assert [curves.at(run, time) for time in (2, 3, 7, 8)] == [None, 0.5, 0.5, 0.73]
    assert curves.time_to(run, 0.615) == pytest.approx(5.25)
    assert curves.time_to(run, 0.4) == 3
    assert curves.time_to(run, 0.74) is None


def test_a_seed_that_plain_training_does_not_have_is_named() -> None:
    more = RUNS["head only"] | {7: _result("head only", 7, [(9, 0.6)])}
    with pytest.raises(ValueError, match=r"'head only' has the seeds \[7\], plain training does not"):
        curves.ahead({**RUNS, "head only": more}, "head only")


def test_what_else_the_machine_does_counts_for_nothing() -> None:
    runs = {0: _result("plain", 0, [(5, 0.5), (10, 0.8)]), 1: _result("plain", 1, [(7, 0.6), (14, 0.9)])}
    found = curves.undisturbed(runs)
    assert [run["process_seconds"] for run in found.values()] == [10, 10]
    assert [point["process_seconds"] for point in found[1]["curve"]] == [5, 10]
    assert curves.at(found[1], 10) == 0.9


def test_seconds_of_other_days_and_processors_are_those_beside_plain_training() -> None:
    curve = [(5.0, 0.5), (10.0, 0.8)]
    runs = {
        "plain": {s: _result("plain", s, [(9.0 + s, 0.8), (18.0 + s, 0.9)]) | {"steps": 180} for s in (0, 1)},
        "same session": {0: _result("same session", 0, curve)},
        "slow day": {0: _result("slow day", 0, curve, commit="b")},
        "day without a clock": {0: _result("day without a clock", 0, curve, commit="c")},
        "slow processor": {0: _result("slow processor", 0, curve, commit="b", cpu="y")},
        "other day of it": {0: _result("other day of it", 0, curve, commit="c", cpu="y")},
    }
    clocks = {("b", "x"): 20.0, ("b", "y"): 36.0}
    found = curves.comparable(runs, clocks)
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    assert took == pytest.approx(
        {
            "plain": 18.0, "same session": 10.0, "slow day": 9.0, "day without a clock": 10.0,
            "slow processor": 5.0, "other day of it": 5.0,
        }
    )  # fmt: skip
    assert [point["process_seconds"] for point in found["slow day"][0]["curve"]] == pytest.approx([4.5, 9.0])
    assert found["plain"][1]["process_seconds"] == 18.0
    with pytest.raises(ValueError, match="'slow processor' of t, short, was run on 'y', plain training was not"):
        curves.comparable(runs, {})


def test_a_contender_has_the_speed_up_over_its_own_clock_and_moves_no_other() -> None:
    curve = [(5.0, 0.5), (10.0, 0.8)]
    runs = {
        "plain": {0: _result("plain", 0, [(20.0, 0.9)]) | {"steps": 180}},
        "plain 0.5": {0: _result("plain 0.5", 0, [(9.0, 0.7)]) | {"steps": 90}},
        "clocked": {0: _result("clocked", 0, curve, commit="b")},
        "without": {0: _result("without", 0, curve, commit="c")},
    }
    found = curves.comparable(runs, {("b", "x"): 15.0})
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    # The shorter run tells that a step takes .1 s, so plain training counts with 18 s.
    assert took == pytest.approx({"plain": 18.0, "plain 0.5": 9.0, "clocked": 18.0 / 1.5, "without": 10.0})


def test_a_clock_of_what_was_not_committed_counts_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "clocks" / "b_x"
    folder.mkdir(parents=True)
    for name, took, dirty in (("0", 5.0, True), ("1", 7.0, False)):
        result = _result("plain", 0, [(took, 0.9)], commit="b") | {"dirty": dirty}
        (folder / f"{name}.json").write_text(json.dumps(result))
    assert sessions.clocks(tmp_path, dirty=False) == {("t", "short"): {("b", "x"): 7.0}}
    assert sessions.clocks(tmp_path, dirty=True) == {("t", "short"): {("b", "x"): 5.0}}


def test_the_answer_is_read_from_the_runs_of_all_tasks() -> None:
    other = {name: RUNS[name] for name in ("plain", "plain 0.5")}
    lines = answer.answer({("a", "short"): RUNS, ("b", "short"): other, ("c", "long"): RUNS}, "short").splitlines()
    assert lines[0] == "| setting | a | b | speed-up |"
    assert lines[2:] == ["| multirate head k5 all | +3.5 ± 0.5 |  | 1.3 |"]
    assert answer.answer({}, "short") == "Not run yet."


def test_the_headline_has_the_tasks_where_the_ladder_or_a_frozen_prefix_was_run() -> None:
    ladder = RUNS["multirate head k5 all"]
    runs = {name: RUNS[name] for name in ("plain", "plain 0.5")} | {"multirate ladder 1,2,4 none": ladder}
    found = {("trec", "short"): RUNS, ("sst2", "long"): runs}
    lines = answer.headline(found).splitlines()
    assert lines[0] == "| task | ladder, one epoch | ladder, three epochs | frozen, one epoch | frozen, three epochs |"
    assert lines[2:] == ["| SST-2 |  | +3.5 ± 0.5 |  |  |"]
    assert report.filled("<!-- bench headline all both -->\n<!-- end -->", found, {}).splitlines()[1:-1] == lines
    assert answer.headline({("trec", "short"): RUNS}) == "Not run yet."


def test_plain_runs_count_with_the_fastest_step_of_any_that_is_no_longer() -> None:
    runs = RUNS | {"plain 0.8": {0: _result("plain 0.8", 0, [(3.0, 0.5), (6.0, 0.7)]) | {"steps": 80}}}
    found = curves.comparable(runs, {})
    took = {name: some[0]["process_seconds"] for name, some in found.items()}
    assert took == pytest.approx(
        {"plain": 7.5, "plain 0.8": 6.0, "plain 0.5": 5.0, "multirate head k5 all": 7.5, "head only": 2.5}
    )
    assert found["plain"][0]["curve"][0]["process_seconds"] == pytest.approx(3.75)


def test_plain_training_that_is_no_better_than_shorter_is_not_what_others_are_held_against() -> None:
    runs = RUNS | {"plain 0.7": {s: _result("plain 0.7", s, [(3, 0.4), (7, 0.5 + 0.19 * s)]) for s in (0, 1)}}
    assert curves.plain_by_time(runs, [1]) == [(5, 0.6), (10, pytest.approx(0.82))]
    assert curves.ahead(runs, "multirate head k5 all") == curves.ahead(RUNS, "multirate head k5 all")
    better = RUNS | {"plain 0.7": {s: _result("plain 0.7", s, [(3, 0.4), (7, 0.5 + 0.21 * s)]) for s in (0, 1)}}
    assert curves.plain_by_time(better, [0, 1])[1] == (7, pytest.approx(0.605))


def test_plain_training_is_run_beside_what_is_measured_on_another_day(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(commit: str, *contenders: str) -> set[str]:
        monkeypatch.setattr(suite, "commit", lambda out, dirty: {"commit": commit, "dirty": False})
        before = set(tmp_path.rglob("*.json"))
        suite.main(options(tmp_path, "--length", "short", "--contenders", *contenders))
        return {str(path.relative_to(tmp_path)) for path in set(tmp_path.rglob("*.json")) - before}

    for contender in ("head only", "BAdam"):  # the second finds plain training of its own session
        assert not [name for name in measured("a" * 40, "plain", contender) if "clock" in name]
    new = measured("b" * 40, "plain", "LISA")
    beside = sorted(name for name in new if name.startswith("clocks/bbbbbbb_"))
    assert len(beside) == 2
    assert all("__plain__" in name and name.endswith("__clock.json") for name in beside)
    assert len(new) == 2 + 2 + 2  # clocks, and trials and finals of LISA
    assert not measured("b" * 40, "plain", "LISA")  # all is there
    assert not measured("c" * 40, "LISA")  # nothing to run needs no clock
    clock = min(json.loads((tmp_path / name).read_text())["process_seconds"] for name in beside)
    lisa = [json.loads(path.read_text())["process_seconds"] for path in tmp_path.glob("*LISA*final.json")]
    runs = curves.finals(tmp_path)["tiny", "short"]
    expected = min(lisa) * curves.seconds(runs["plain"].values()) / clock
    assert curves.seconds(runs["LISA"].values()) == pytest.approx(expected)


def test_tables_say_what_the_runs_say() -> None:
    rates = {name: {1e-3: 0.1, 1e-2: 0.2, 1e-4: 0.1} for name in RUNS} | {"plain": {1e-3: 0.1, 1e-2: 0.2}}
    lines = report.outcome(RUNS, rates).splitlines()[2:]
    assert lines == [
        "| head only | 0.001 | 81.0 ± 0.0 | 2 | 4.00 |  |  | 0.25 |",
        "| plain 0.5 | 0.001 | 60.0 ± 0.0 | 5 | 2.00 |  |  | 0 of 2 seeds |",
        "| multirate head k5 all | 0.001 | 74.0 ± 1.4 | 8 | 1.33 | 70.5 | +3.5 ± 0.5 | 0 of 2 seeds |",
        "| plain | 0.001\\* | 81.0 ± 1.4 | 10 | 1.00 |  |  | 1 of 2 seeds |",
    ]
    assert report.budgets(RUNS, {}).splitlines()[2:] == [
        "| plain, schedule of that length |  |  | 64.2 | 72.6 | 81.0 |",
        "| plain |  |  | 50.0 | 50.0 | 81.0 |",
        "| multirate head k5 all |  | 60.0 | 60.0 | 74.0 | 74.0 |",
        "| head only | 30.0 | 81.0 | 81.0 | 81.0 | 81.0 |",
    ]


def test_automatic_training_is_beside_the_best_fixed_setting_that_takes_no_longer() -> None:
    runs = {
        **RUNS,
        "multirate slow": {0: _result("multirate slow", 0, [(9.0, 0.9)])},
        "auto 2": {s: _result("auto 2", s, [(7.4, 0.72 + 0.02 * s)]) for s in (0, 1)},
        "auto 3": {s: _result("auto 3", s, [(6.0, 0.6)]) for s in (0, 1)},
    }
    assert report.automatic(runs, {}).splitlines()[2:] == [
        "| 2 | 1.35 | 73.0 ± 1.4 | 70.1 | +2.9 ± 0.5 | multirate head k5 all | 74.0 ± 1.4 |",
        "| 3 | 1.67 | 60.0 ± 0.0 | 64.2 | -4.2 ± 0.2 |  |  |",
    ]


def test_a_page_is_filled_and_pictures_are_drawn(tmp_path: Path) -> None:
    folder, page = tmp_path / "results", tmp_path / "page.md"
    folder.mkdir()
    for name, by_seed in RUNS.items():
        for seed, result in by_seed.items():
            (folder / f"{name}_{seed}__final.json").write_text(json.dumps(result))
            trial = {**result, "validation_metric": 0.5}
            (folder / f"{name}_{seed}__trial.json").write_text(json.dumps(trial))
    page.write_text(
        "a\n<!-- bench outcome t short -->\nold\n<!-- end -->\n<!-- bench budgets t long -->\n<!-- end -->\n"
    )
    report.main(["--results", str(folder), "--pages", str(page)])
    text = page.read_text()
    assert "| multirate head k5 all | 0.001\\* | 74.0 ± 1.4 |" in text
    assert "old" not in text
    other = {**RUNS["plain"][0], "spec": {**RUNS["plain"][0]["spec"], "rate": 5.0}, "test_metric": 0.1}
    (folder / "plain_5__final.json").write_text(json.dumps(other))
    report.main(["--results", str(folder), "--pages", str(page)])
    assert page.read_text() == text  # a rate that was not chosen
    assert "Not run yet." in text
    assert (tmp_path / "images" / "bench_t_short.png").stat().st_size > 10_000
    (folder / "plain_0__final.json").write_text(json.dumps({**RUNS["plain"][0], "dirty": True}))
    with pytest.raises(ValueError, match="not committed"):
        report.main(["--results", str(folder), "--pages", str(page)])


def test_tables_of_the_page_are_those_of_the_results() -> None:
    found = curves.finals(report.RESULTS)
    assert found
    for page in report.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- bench" in text
        assert report.filled(text, found, curves.grids(report.RESULTS)) == text
