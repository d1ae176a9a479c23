"""The experiments of the paper on a task of a few rows: what is trained, in which order, and what is repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from benchmarks.__main__ import main
from benchmarks.accuracy.images import SteadyBatchNorm
from benchmarks.accuracy.results import ResultsFile
from benchmarks.accuracy.tasks import Data
from benchmarks.budgets.kinds import KindsFile
from benchmarks.budgets.plan import Plan
from benchmarks.reproduction import language, page, run_one, runs, suite, tasks
from benchmarks.reproduction.contenders import ALL, BLOCK, CONTENDERS, EXPERIMENTS, HEAD, LANGUAGE, VISION
from benchmarks.reproduction.lengths import last_gain, levelled_off
from benchmarks.reproduction.run_one import Spec
from hf_multirate.model.partition import assign
from tests.benchmarks.tiny_task import TINY, load
from tests.support.runs import FIVE


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROWS = (ALL, HEAD, "head")
LENGTHS = (("1", 1), ("2", 2), ("3", 3))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment on texts with the one task ``tiny``."""
    if not FIVE:
        pytest.skip("the benchmark is of transformers 5, whose names of arguments it uses")
    experiment = dataclasses.replace(LANGUAGE, tasks=("tiny",), full_tasks=LANGUAGE.full_tasks)
    monkeypatch.setitem(tasks.TASKS, "tiny", dataclasses.replace(TINY, epochs=LENGTHS))
    monkeypatch.setitem(EXPERIMENTS, "language", experiment)
    monkeypatch.setattr(language, "LANGUAGE", experiment)
    monkeypatch.setattr(run_one, "load", load)
    run_one._loaded.clear()


def folder(root: Path) -> Path:
    return root / "benchmarks" / "results" / "reproduction"


def options(root: Path, *more: str, rows: Sequence[str] = ROWS) -> list[str]:
    words = ["--jobs", "0", "--quiet", "--allow-dirty", "--passes", "1", "--out", str(folder(root)), "--rows", *rows]
    return ["reproduce", "language", *words, *more]


def made_up(spec: Spec, plan: Plan, place: Path | None) -> dict[str, Any]:
    """A result without training: two epochs are enough, and the highest rate is best for multirate training."""
    del place
    best = spec.rate if spec.method == HEAD else -abs(spec.rate - 1e-2)
    gain = 0.1 if spec.length == "1" else 0.0
    curve = [{"step": plan.steps * i // 3, "metric": 0.5 + gain * (i == 3)} for i in (1, 2, 3)]
    scores = {"validation_metric": best, **({"test_metric": 0.5} if spec.role == "final" else {})}
    measured = {**scores, "steps": plan.steps, "kinds": plan.kinds, "process_seconds": 1.0, "wall_seconds": 2.0}
    return {
        **dataclasses.asdict(spec), **measured, "curve": curve, "settings": spec.settings(),
        "machine": {"processor": "x"},
    }  # fmt: skip


def made_up_seconds(function: str, contender: str, task: str, place: Path | None) -> dict[str, Any]:
    """Reference seconds without training: a full step takes 2, others take 1."""
    del function, task, place
    groups = {ALL: [["all", 1]], HEAD: [["fast", 1], ["slow", 5]], BLOCK: [["fast", 1], ["slow", 5]]}
    kinds = {ALL: {"all": 2.0}, HEAD: {"fast": 1.0, "fast + slow": 2.0}, BLOCK: {"fast": 1.0, "fast + slow": 2.0}}
    times = {
        kind: {"process_seconds": [seconds], "wall_seconds": [seconds]}
        for kind, seconds in kinds.get(contender, {"fast": 1.0}).items()
    }
    found = groups.get(contender, [["fast", 1]])
    return {"line": {"setting": contender, "groups": found, "rows": 12, "times": times}, "machine": {"processor": "x"}}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """The runs that are made, in their order, without training."""
    made: list[Spec] = []
    monkeypatch.setattr(runs, "run", lambda spec, plan, place: (made.append(spec), made_up(spec, plan, place))[1])
    monkeypatch.setattr(suite, "timed", made_up_seconds)
    return made


def test_real_runs_are_charged_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = options(tmp_path, "--seeds", "1", "--more-seeds", "2", "--epochs", "2", "--parts", "main")
    main(words)
    results = ResultsFile(folder(tmp_path), "tiny", "2").runs
    kinds = KindsFile(folder(tmp_path) / "kinds", "tiny")
    for result in results:
        seconds = [number * kinds.charge(result["method"], kind).seconds for kind, number in result["kinds"].items()]
        assert result["reference_seconds"] == pytest.approx(sum(seconds))
        assert sum(result["kinds"].values()) == result["steps"]
        assert (result["role"] == "final") == ("test_metric" in result) == (len(result["curve"]) > 2)
    finals = [result for result in results if result["role"] == "final"]
    assert [(r["seed"], r["method"], r["time_of"]) for r in finals] == [
        (0, ALL, ""), (0, HEAD, ""), (0, "head", ""), (0, ALL, HEAD), (1, ALL, ""), (1, HEAD, ""), (1, ALL, HEAD),
    ]  # fmt: skip
    assert all(r["steps"] == 12 for r in finals if not r["time_of"])
    assert finals[0]["curve"][-1] == {"step": 12, "metric": finals[0]["test_metric"]}
    text = page.page(tmp_path, allow_dirty=True)
    assert "### 2 epochs" in text
    assert f"| {HEAD} | " in text
    path = folder(tmp_path) / "tiny_2.jsonl"
    kept = path.read_text()
    path.write_text(kept.replace('"dirty": false', '"dirty": true'))  # whatever the state of this checkout is
    with pytest.raises(ValueError, match="not committed"):
        page.page(tmp_path)
    path.write_text(kept)

    def nothing(*args: Any) -> None:
        raise AssertionError(args)

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    monkeypatch.setattr(runs, "run", nothing)
    monkeypatch.setattr(suite, "timed", nothing)
    main(words)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}


def test_length_and_rates_come_first_then_seed_by_seed(tmp_path: Path, order: list[Spec]) -> None:
    main(options(tmp_path, "--seeds", "2", "--more-seeds", "3"))
    assert [(spec.length, spec.role) for spec in order[:2]] == [("1", "length"), ("2", "length")]
    assert {spec.length for spec in order[2:]} == {"2"}
    trials = [spec for spec in order if spec.role == "trial"]
    assert order[2 : 2 + len(trials)] == trials
    assert [spec.method for spec in trials] == [*ROWS, *ROWS, *ROWS, HEAD, "head"]
    assert [spec.rate for spec in trials if spec.method == HEAD] == pytest.approx([5e-3, 1e-2, 2e-2, 4e-2])
    finals = [(spec.seed, spec.method, spec.time_of) for spec in order if spec.role == "final"]
    both = [(seed, name, "") for seed in (0, 1) for name in ROWS]
    shown = [[*(run for run in both if run[0] == seed), (seed, ALL, HEAD)] for seed in (0, 1)]
    more = [(2, ALL, ""), (2, HEAD, ""), (2, ALL, HEAD)]
    lower = [(seed, HEAD, "") for seed in (0, 0, 1, 1)]
    assert finals == [*shown[0], *shown[1], *more, *lower]
    assert [spec.rate for spec in order[-4:]] == pytest.approx([2e-2, 1e-2] * 2)  # the chosen one is 4e-2
    assert {spec.rate for spec in order[:-4] if spec.role == "final" and spec.method == HEAD} == {4e-2}


def test_all_parameters_get_the_seconds_of_multirate_training(tmp_path: Path, order: list[Spec]) -> None:
    main(options(tmp_path, "--seeds", "1", "--more-seeds", "1", rows=(ALL, HEAD, BLOCK)))
    found = {(r["method"], r["time_of"]): r for r in ResultsFile(folder(tmp_path), "tiny", "2").runs if r["seed"] == 0}
    assert found[HEAD, ""]["kinds"] == {"fast + slow": 3, "fast": 9}
    assert found[HEAD, ""]["reference_seconds"] == pytest.approx(3 * 2 + 9)
    assert found[ALL, HEAD]["steps"] == 7  # 14 of 15 seconds; 8 steps would take 16 and come second
    assert set(found) == {(ALL, ""), (HEAD, ""), (BLOCK, ""), (ALL, HEAD), (ALL, BLOCK)}


def test_a_killed_suite_repeats_only_what_is_missing(tmp_path: Path, order: list[Spec]) -> None:
    words = options(tmp_path, "--seeds", "1", "--more-seeds", "1")
    main(words)
    path = folder(tmp_path) / "tiny_2.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    last = order[-1]
    order.clear()
    main(words)
    assert order == [last]
    assert path.read_text() == whole


def test_plan_shows_steps_and_hours_and_runs_nothing(
    tmp_path: Path, order: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    main(options(tmp_path, "--seeds", "1", "--more-seeds", "1", "--plan"))
    assert not order
    out = capsys.readouterr().out
    assert f"| tiny | 2 | {HEAD} | 12 | 6 |" in out
    assert f"| tiny | 2 | all parameters, in the time of {HEAD} | 7 | 1 |" in out
    assert "hours of one core in all" in out


def test_contradicting_options_and_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(options(tmp_path, "--dry-run"))
    with pytest.raises(SystemExit, match="has the lengths 1, 2, 3, got --epochs 7"):
        main(options(tmp_path, "--epochs", "7", "--plan"))
    with pytest.raises(SystemExit, match="vision cannot run: there is no 'cifar10_train_0"):
        main(["reproduce", "vision", "--allow-dirty", "--jobs", "0", "--data-dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("values", "gain", "level"), [((0.1, 0.5, 0.504), 0.004, True), ((0.1, 0.5, 0.51), 0.01, False), ((0.1,), 0, True)]
)
def test_training_has_levelled_off_if_the_last_third_gains_little(
    values: Sequence[float], gain: float, level: bool
) -> None:
    curve = [{"step": 10 * i, "metric": value} for i, value in enumerate(values, 1)]
    assert last_gain(curve) == pytest.approx(gain)
    assert levelled_off(curve) == level


def small_resnet() -> nn.Module:
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes))


@pytest.mark.parametrize(
    ("row", "stages"),
    [("stages 2 + 3 + 4 + head", "123"), ("stages 3 + 4 + head", "23"), ("stage 4 + head", "3"), ("head", "")],
)
def test_static_rows_of_images_train_the_named_stages(row: str, stages: str) -> None:
    fast = assign(CONTENDERS[row].config, small_resnet())["fast"]
    assert {name.split(".")[3] for name in fast if "stages" in name} == set(stages)
    assert {name.split(".")[0] for name in fast} == ({"resnet", "classifier"} if stages else {"classifier"})


def test_ablations_differ_from_the_setting_of_the_paper_as_they_are_named() -> None:
    configs = {name: CONTENDERS[name].config for name in (HEAD, *VISION.ablations)}
    fast, slow = configs[HEAD].groups
    assert (fast.period, slow.period, slow.idle, slow.lr_scale) == (1, 5, "drift", 1.0)
    assert configs[HEAD].drift_factor == 1.0
    found = {name: config.groups[-1] for name, config in configs.items()}
    assert found["without drift: one long step"].idle == "long_step"
    assert found["without drift: frozen"].idle == "freeze"
    assert (found["period 2"].period, found["period 10"].period) == (2, 10)
    assert found["slow steps as long as fast ones"].lr_scale == 1 / slow.period
    assert configs["running batch norm, frozen at fast steps"].inactive_buffers == "freeze"
    assert configs["all, running batch norm"].is_standard_training


def test_running_batch_norm_follows_the_run() -> None:
    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten())
        network[0].__class__ = SteadyBatchNorm
        return network.train()

    data = Data([], [], [], lambda rows: {}, model, by_length=False)
    rows = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)) + 5
    for name, moved in ((HEAD, False), ("running batch norm", True)):
        network = run_one.adapted(data, CONTENDERS[name]).model(0)
        network.train()
        network(rows)
        assert bool(network[0].running_mean.abs().sum() > 0) == moved


@pytest.mark.parametrize("experiment", ["vision", "language"])
def test_a_dry_run_takes_two_steps_at_full_scale(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["reproduce", experiment, "--full-scale", "--dry-run", "--allow-dirty", "--rows", HEAD])
    lines = [line for line in capsys.readouterr().out.splitlines() if f"| {HEAD} | " in line]
    assert len(lines) == len(EXPERIMENTS[experiment].full_tasks)
    assert all("1 x fast + slow, 1 x fast" in line for line in lines)


def test_at_full_scale_seconds_are_wall_seconds(
    tmp_path: Path, order: list[Spec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "is_full", lambda task: True)
    monkeypatch.setattr(suite, "is_full", lambda task: True)
    monkeypatch.setitem(tasks.TASKS, "tiny", dataclasses.replace(tasks.TASKS["tiny"], train_rows=12))
    main(options(tmp_path, "--seeds", "1", "--more-seeds", "1"))
    (timed,) = (r for r in ResultsFile(folder(tmp_path), "tiny", "2").runs if r["time_of"])
    assert timed["reference_seconds"] == timed["wall_seconds"] == 2.0
    assert timed["steps"] == 12  # both rows took as long
    assert not (folder(tmp_path) / "kinds").exists()
