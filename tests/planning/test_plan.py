"""Plans against work counted by hand, and against what training really does; the command and its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_multirate import Multirate, MultirateConfig, Plan, RateGroup, plan
from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.cli import DEFAULT_FAST, configs_of, main
from hf_multirate.cli.load_model import BatchSize, load
from hf_multirate.model.auto_periods import choose_periods
from hf_multirate.planning import plans_reaching
from hf_multirate.planning.measure import ROUNDS
from tests.support.runs import example
from tests.support.tiny import FAMILIES


ROWS = 6


class Stack(nn.Module):
    """Three matrices of 8 x 8 and a head of 8 x 2, so that all work is known."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = block(x).relu()
        return {"loss": nn.functional.cross_entropy(self.head(x), labels)}


def stack() -> tuple[Stack, dict[str, Tensor]]:
    return Stack(), {"x": torch.randn(ROWS, 8), "labels": torch.zeros(ROWS, dtype=torch.long)}


def product(rows: int, one: int, other: int) -> int:
    return 2 * rows * one * other


BLOCK, HEAD = product(ROWS, 8, 8), product(ROWS, 8, 2)


def only(model: nn.Module, batch: Any, config: MultirateConfig, **settings: Any) -> Plan:
    (found,) = plan(model, batch, {"it": config}, **settings)
    return found


def test_work_of_two_rates_is_that_counted_by_hand() -> None:
    found = only(*stack(), MultirateConfig.two_rate("^head", 4, idle="drift"))
    fast, slow = found.groups
    assert (fast.forward, fast.activation_gradients, fast.weight_gradients) == (HEAD, 0, HEAD)
    # The slow part makes the gradients of its activations those of the head's input and two of its own.
    assert (slow.forward, slow.activation_gradients, slow.weight_gradients) == (3 * BLOCK, HEAD + 2 * BLOCK, 3 * BLOCK)
    full, short = found.steps
    assert (full.flops, short.flops) == (8 * BLOCK + 3 * HEAD, 3 * BLOCK + 2 * HEAD)
    assert (full.per_cycle, short.per_cycle) == (1, 3)
    assert found.speedup == pytest.approx(4 * full.flops / (full.flops + 3 * short.flops))
    assert found.bound == pytest.approx(full.flops / short.flops)
    assert (full.boundary, short.boundary) == (None, "head.weight")
    assert (full.communicated, short.communicated) == (4 * (3 * 64 + 16), 4 * 16)
    # Weights, their gradients, two moments; kept are the inputs of each product, relu outputs among them.
    kept = full.memory - 4 * 4 * (3 * 64 + 16)
    assert kept == 4 * ROWS * (8 * 4) + kept_by_the_loss()


def kept_by_the_loss() -> int:
    return ROWS * (8 + 4 * 2) + 4 * ROWS // 2  # labels, logarithms of two classes, a sum of weights for two rows


def test_groups_of_a_ladder_add_up_to_a_full_step() -> None:
    groups = [
        RateGroup("a", "^head", 1),
        RateGroup("b", r"blocks\.2", 2, idle="drift"),
        RateGroup("c", ".*", 3, idle="drift"),
    ]
    found = only(*stack(), MultirateConfig(groups, turns="fixed"))
    work = [group.forward + group.activation_gradients + group.weight_gradients for group in found.groups]
    assert sum(work) == found.steps[0].flops == 8 * BLOCK + 3 * HEAD
    assert {step.live: step.per_cycle for step in found.steps} == {
        ("a", "b", "c"): 1, ("a", "b"): 2, ("a", "c"): 1, ("a",): 2,
    }  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "gpt2-lm", "resnet", "t5"])
def test_model_and_batch_are_as_before(family: str) -> None:
    model, rows = example(family, count=4)
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    found = only(model, batch, MultirateConfig.two_rate("last:1", idle="drift"), measure=True)
    assert found.speedup_measured is not None
    assert found.speedup_measured > 0
    assert torch.equal(state, torch.get_rng_state())
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # both lines have this name
def test_what_blocks_the_saving_is_named() -> None:
    model, batch = FAMILIES["gpt2-lm"]()
    tied = only(model, batch, MultirateConfig.two_rate(["wte", "h.3"], 4, idle="drift"))
    assert any("'transformer.wte.weight' is in the fast group" in text for text in tied.blockers)
    assert tied.speedup < 1.3
    low = only(*stack(), MultirateConfig.two_rate([r"blocks\.0"], 4, idle="drift"))
    assert any("the lowest fast parameter is 'blocks.0.weight'" in text for text in low.blockers)
    assert any("backward runs through" in text for text in low.blockers)
    bert, batch = FAMILIES["bert"]()
    bert.gradient_checkpointing_enable()
    found = only(bert, batch, MultirateConfig.two_rate("head", 4, idle="drift"))
    assert any("gradient checkpointing" in text for text in found.blockers)
    assert only(*stack(), MultirateConfig.off()).blockers == ("every step is a full step",)
    assert only(*stack(), MultirateConfig.two_rate("^head", 4, idle="drift")).blockers == ()


@pytest.mark.parametrize("speedup", [1.3, 1.6])
def test_automatic_periods_are_those_of_training(speedup: float) -> None:
    model, batch = FAMILIES["bert"]()
    config = MultirateConfig.auto(speedup, turns="fixed")
    found = only(model, batch, config)
    chosen = choose_periods(config, model)
    assert [(group.name, group.period) for group in found.groups] == [(g.name, g.period) for g in chosen.groups]
    with Multirate(config).attach(model, torch.optim.AdamW(model.parameters())) as multirate:
        assert [group.period for group in multirate.groups] == [group.period for group in found.groups]
    assert found.groups[0].period == 1
    assert found.groups[-1].period > 1
    assert found.steps == only(model, batch, chosen).steps
    assert found.speedup == pytest.approx(speedup, rel=0.2)


def test_automatic_periods_of_named_blocks_are_planned_and_measured() -> None:
    config = MultirateConfig.auto(1.3, [r"blocks\.0", r"blocks\.1", r"blocks\.2", "^head"])
    found = only(*stack(), config, measure=True)
    assert [group.name for group in found.groups] == ["^head", r"blocks\.2", r"blocks\.1", r"blocks\.0"]
    periods = [group.period for group in found.groups]
    assert periods == sorted(periods)
    assert periods[0] == 1 < periods[-1]
    assert found.speedup > 1
    assert found.speedup_measured is not None


def test_a_target_lists_what_reaches_it_the_smallest_period_first() -> None:
    model, batch = stack()
    plans = plan(model, batch, configs_of(["^head", r"^head|blocks\.2"], [2, 8, 4]))
    found = plans_reaching(1.5, plans)
    assert [p.label for p in found][:1] == ["^head, period 4"]
    assert all(p.speedup >= 1.5 for p in found)
    assert [sum(s.per_cycle for s in p.steps) for p in found] == sorted(
        sum(s.per_cycle for s in p.steps) for p in found
    )
    assert plans_reaching(9.0, plans) == []


def test_the_cycle_is_that_of_the_schedule() -> None:
    model, batch = stack()
    groups = [RateGroup("head", "^head", 1), RateGroup("top", r"blocks\.2", 2), RateGroup("rest", ".*", 3)]
    three, seven = plan(model, batch, {"three": MultirateConfig(groups), "8": MultirateConfig.two_rate("^head", 8)})
    assert (three.cycle, seven.cycle) == (6, 8)
    assert [p.label for p in plans_reaching(1.0, [seven, three])] == ["three", "8"]


@pytest.mark.parametrize(
    "config",
    [
        MultirateConfig.new_head("last:1"),
        MultirateConfig.ladder([1, 2], lr_decay=0.9),
        MultirateConfig.two_rate("last:1", 2, idle="long_step"),
        MultirateConfig(
            [RateGroup("top", r"layer\.[23]\.|pooler|class", 1, lr_scale=2.0), RateGroup("rest", ".*", 2)]
        ),
        MultirateConfig.ladder([1, 2], head_start=4, train_time="20min"),
    ],
    ids=["new head", "decay", "long step", "lr_scale", "head start and time"],
)
def test_settings_with_learning_rates_are_measured(config: MultirateConfig, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = FAMILIES["bert"]()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert only(model, batch, config, measure=True).speedup_measured
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert "applies to MultirateTrainer only" not in caplog.text


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_measuring_leaves_no_activation_cache(where: str, tmp_path: Path) -> None:
    model, batch = FAMILIES["bert"]()
    folder = tmp_path / "cache"
    named = {"activation_cache_dir": str(folder)} if where == "disk" else {}
    config = MultirateConfig.two_rate("last:1", "never", activation_cache=where, **named)
    assert only(model, batch, config, measure=True).speedup_measured
    assert not folder.exists()


def test_kept_rows_save_the_forward_pass_of_the_frozen_blocks() -> None:
    model, batch = stack()
    frozen = MultirateConfig.two_rate(r"^head|blocks\.2", "never")
    without, cached = plan(model, batch, {"no": frozen, "yes": replace(frozen, activation_cache="memory")})
    (step,) = cached.steps
    assert step.flops == 4 * BLOCK + 3 * HEAD  # of the blocks: three outputs and one gradient of a weight
    assert cached.speedup == without.speedup
    full = 8 * BLOCK + 3 * HEAD
    assert cached.speedup_kept == pytest.approx(full / (step.flops - 2 * BLOCK))
    assert (without.speedup_kept, cached.speedup_kept_measured) == (None, None)
    staged = MultirateConfig.stages([(0.25, MultirateConfig.off()), (1.0, replace(frozen, activation_cache="memory"))])
    assert only(model, batch, staged).speedup_kept == pytest.approx(1 / (0.25 + 0.75 / cached.speedup_kept))


def test_steps_with_kept_rows_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = FAMILIES["bert"]()
    close, hits = ActivationCache.close, []
    monkeypatch.setattr(ActivationCache, "close", lambda cache: (close(cache), hits.append(cache.counts.hits)))
    config = MultirateConfig.two_rate("last:1", "never", activation_cache="memory")
    found = only(model, batch, config, measure=True)
    assert hits == [len(batch["labels"])] * (ROUNDS + 1)  # one step of each round
    assert found.speedup_kept is not None
    assert found.speedup_kept > found.speedup
    assert found.speedup_kept_measured is not None
    assert found.speedup_kept_measured > 0
    assert only(model, batch, replace(config, activation_cache=None), measure=True).speedup_kept_measured is None


def folder_of(family: str, folder: Path) -> str:
    model, _ = FAMILIES[family]()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return str(folder)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    main(["plan", *words])
    return capsys.readouterr().out


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        folder_of("bert", tmp_path),
        "--batch",
        "4",
        "--seq",
        "8",
        "--fast",
        "head",
        "ladder:1,2",
        "--period",
        "3",
    ]
    table = printed(capsys, *words, "--details")
    assert "head, period 3" in table
    assert "ladder:1,2" in table
    assert "classifier.weight" in table.replace("\n", "")
    values = json.loads(printed(capsys, *words, "--json"))
    assert [value["label"] for value in values] == ["head, period 3", "ladder:1,2"]
    assert values[0]["steps"][0]["per_cycle"] == 1
    assert values[0]["speedup_measured"] is None


def test_configurations_in_files_are_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top_first = [(0.25, MultirateConfig.two_rate("head", "never")), (1.0, MultirateConfig.off())]
    config = MultirateConfig.stages(top_first)
    path = str(tmp_path / "stages.json")
    Path(path).write_text(config.to_json())
    words = [folder_of("bert", tmp_path), "--batch", "4", "--seq", "8", "--json"]
    (value,) = json.loads(printed(capsys, *words, "--config", path))
    expected = only(*load(words[0], None, BatchSize(4, 8)), config)
    assert value["label"] == path
    assert value["speedup"] == pytest.approx(expected.speedup)
    assert [stage["share"] for stage in value["stages"]] == [0.25, 0.75]
    table = printed(capsys, *words[:-1], "--config", path)
    assert "stage 1: steps of a cycle" in table
    assert "stage 2: steps of a cycle" in table
    both = json.loads(printed(capsys, *words, "--config", path, "--fast", "head", "--period", "3"))
    assert [value["label"] for value in both] == [path, "head, period 3"]
    both = json.loads(printed(capsys, *words, "--config", path, "--period", "3"))
    assert [value["label"] for value in both] == [path, *(f"{fast}, period 3" for fast in DEFAULT_FAST)]


def test_memory_and_messages_of_stages() -> None:
    model, batch = stack()
    top, every = MultirateConfig.two_rate("^head", period="never"), MultirateConfig.off()
    config = MultirateConfig.stages([(0.25, top), (1.0, every)])
    staged, first, second = plan(model, batch, {"stages": config, "top": top, "all": every})
    assert staged.steps == staged.groups == ()
    assert staged.memory == second.memory
    assert staged.memory[0] > first.memory[0]
    assert staged.communicated == pytest.approx(0.25 * first.communicated + 0.75 * second.communicated)
    ladder = only(model, batch, MultirateConfig.stages([(0.5, top), (1.0, MultirateConfig.two_rate("^head", 4))]))
    assert (ladder.cycle, first.cycle) == (4, 1)
    assert [p.label for p in plans_reaching(1.0, [ladder, staged])] == ["stages", ladder.label]


@pytest.mark.parametrize("family", ["bert", "gpt2-lm", "t5", "vit", "resnet", "llama-lm"])
def test_a_folder_with_a_configuration_is_enough(family: str, tmp_path: Path) -> None:
    model, batch = load(folder_of(family, tmp_path), None, BatchSize(3, 6))
    assert len(next(iter(batch.values()))) == 3
    assert only(model, batch, MultirateConfig.two_rate("last:1", 3, idle="drift")).speedup > 1


def test_classifiers_of_other_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = FAMILIES["bert"]()
    model.config.architectures, model.config.problem_type = [type(model).__name__], "multi_label_classification"
    model.config.save_pretrained(tmp_path / "several")
    assert "last:1, period 2" in printed(capsys, str(tmp_path / "several"), "--batch", "4", "--seq", "8")
    decoder = folder_of("gpt2-lm", tmp_path / "decoder")
    words = [decoder, "--task", "text-classification", "--batch", "4", "--seq", "8", "--fast", "last:1"]
    assert "last:1, period 2" in printed(capsys, *words)


def test_the_defaults_suit_models_with_a_tied_head_and_those_that_look_for_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--batch", "4", "--seq", "8", "--json", "--period", "2"]
    found = json.loads(printed(capsys, folder_of("gpt2-lm", tmp_path / "tied"), *words))
    assert [value["label"] for value in found] == ["last:1, period 2", "last:2, period 2"]
    found = json.loads(printed(capsys, folder_of("bart-cls", tmp_path / "end"), *words))
    assert [value["label"] for value in found] == [f"{fast}, period 2" for fast in DEFAULT_FAST]
    with pytest.raises(SystemExit, match="is tied"):
        main(["plan", str(tmp_path / "tied"), *words, "--fast", "head"])


def test_a_function_gives_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = __name__
    lines = [f"import {name} as tested", "def both():", "    return tested.stack()", "model = tested.Stack"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    model, batch = load("mine:both", None, BatchSize(1, 1))
    assert only(model, batch, MultirateConfig.two_rate("^head", idle="drift")).bound > 2
    with pytest.raises(ValueError, match="return both a model and a batch"):
        load("mine:model", None, BatchSize(1, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at-all"], "could not be loaded"),
        (["nothing_there:model"], "could not be called"),
        (["FOLDER", "--seq", "9999"], "the forward pass of"),
        (["FOLDER", "--seq", "8", "--speedup", "50"], "no configuration reaches a speed-up of 50"),
        (["FOLDER", "--config", "nowhere.json"], "nowhere.json"),
        (["FOLDER", "--seq", "8", "--fast", "ladder:a"], "a ladder must be a list of integers"),
        (["FOLDER", "--seq", "8", "--fast", "no_such_part"], "no_such_part"),
    ],
)
def test_what_cannot_be_planned_ends_with_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    words = [folder_of("bert", tmp_path) if word == "FOLDER" else word for word in words]
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--batch", "2", *words])
    assert str(stop.value.code).startswith("error: ")
    assert message in str(stop.value.code)
