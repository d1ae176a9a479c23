"""Figures of a run: seconds by kind of step, loss decrease of blocks, shortfalls, progress bar and record."""

from __future__ import annotations

import gc
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ProgressCallback, TrainerCallback

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer, MultirateTrainingArguments
from hf_multirate.controller.step_timer import StepTimer, slow_run_message
from hf_multirate.model.auto_periods import block_groups
from hf_multirate.model.blocks import blocks_of
from hf_multirate.model.cost_model import backward_costs, layers_of
from hf_multirate.model.partition import assign
from hf_multirate.optim import loss_decrease
from hf_multirate.optim.loss_decrease import MAX_UNREAD, BlockLossDecrease, LossDecreaseAverages
from hf_multirate.optim.update_group import InnerProducts
from hf_multirate.reporting.run_record import FILE, FORMAT, checksum, read_record
from hf_multirate.trainer.log_values import BlockEntries
from tests.support.runs import CONFIG, DEFAULTS, FIVE, PERIOD, arguments, example, history, trainer_for
from tests.support.tiny import FAMILIES
from tests.support.waits import Waits


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(
    full: float, fast: float, *, predicted: float = 0.25, steps: int = 60, gap: float = 0.0, purpose: str | None = None
) -> str | None:
    """What is said of steps of these seconds, every fifth a full one, with ``gap`` seconds between two."""
    clock = Clock()
    timing = StepTimer(clock=clock)
    for step in range(steps):
        timing.start()
        clock.now += fast if step % 5 else full
        timing.stop(full=step % 5 == 0, predicted_cost=predicted if step % 5 else 1.0)
        if purpose is None:
            clock.now += gap
        else:
            with timing.outside_step(purpose):
                clock.now += gap
    return slow_run_message(timing)


def test_a_run_as_fast_as_predicted_is_not_talked_about() -> None:
    assert told(1.0, 0.25) is None
    assert told(1.0, 0.29) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"full": 1.0, "fast": 0.97}, "boundary not reached: a fast step takes 0.97 of a full step"),
        ({"full": 1.0, "fast": 0.5}, "small batch: a fast step takes 0.50 of a full step, predicted 0.25"),
        ({"full": 1.0, "fast": 0.25, "gap": 0.4, "purpose": "data"}, "50% of the time goes into data loading"),
        ({"full": 1.0, "fast": 0.25, "gap": 0.4, "purpose": "evaluation"}, "50% of the time goes into evaluation"),
        ({"full": 1.0, "fast": 0.25, "gap": 0.4}, "50% of the time goes into work between steps"),
    ],
)
def test_the_cause_of_a_shortfall_is_named(settings: dict[str, Any], words: str) -> None:
    found = told(**settings)
    assert found is not None
    assert words in found
    assert found.count("of the time goes") + found.count("takes") == 1


def test_nothing_is_said_too_early() -> None:
    assert told(10.0, 9.7, steps=20) is None  # four full steps
    assert told(10.0, 9.7, steps=21) is not None
    assert told(0.5, 0.485) is None  # half a minute


def test_nothing_is_said_without_a_cause() -> None:
    # What is missing went into many things, each of which is too small to matter.
    clock = Clock()
    timing = StepTimer(clock=clock)
    for step in range(200):
        timing.start()
        clock.now += 0.275 if step % 5 else 1.0
        timing.stop(full=step % 5 == 0, predicted_cost=0.25 if step % 5 else 1.0)
        for purpose in ("data", "evaluation"):
            with timing.outside_step(purpose):
                clock.now += 0.02
        clock.now += 0.02
    realised = timing.speedup_of_run(timing.elapsed)
    assert realised is not None
    assert realised < 0.9 * timing.predicted_so_far
    assert slow_run_message(timing) is None


def test_a_shortfall_is_warned_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings_of: Any) -> None:
    monkeypatch.setattr("hf_multirate.trainer.run_logging.slow_run_message", lambda timing: "it is slow")
    assert warnings_of(trainer_for(tmp_path, CONFIG)) == "it is slow"
    assert warnings_of(trainer_for(tmp_path, MultirateConfig.off())) == ""


def _sgd_run(steps: int, rate: float = 0.1) -> tuple[nn.Sequential, Multirate, list[dict[str, torch.Tensor]]]:
    """Steps of two rates, period 2, and the gradients of each."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    multirate = Multirate(MultirateConfig.two_rate("last:1", 2, turns="fixed", idle="drift")).attach(model, optimizer)
    gradients = []
    for step in range(steps):
        multirate.begin_step(step)
        model(torch.randn(3, 4)).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return model, multirate, gradients


def test_loss_decrease_is_that_along_the_last_update() -> None:
    model, multirate, gradients = _sgd_run(5)
    found = multirate.loss_decrease.take(blocks_of(model))
    # SGD looks back at every second full step, over two steps below and one above; at the first there is no update.
    momentum = {name: 0.9 * gradients[0][name] + gradients[2][name] for name in ("0.weight", "0.bias")}
    slow = sum(0.1 * (gradients[4][name] * p).sum() for name, p in momentum.items())
    assert found["block_0"].decrease == pytest.approx(float(slow), rel=1e-4)
    above = {name: sum(0.9 ** (3 - i) * gradients[i][name] for i in range(4)) for name in ("2.weight", "2.bias")}
    fast = sum(0.1 * (gradients[4][name] * p).sum() for name, p in above.items())
    assert found["block_2"].decrease == pytest.approx(float(fast), rel=1e-4)
    assert [found[block].age for block in ("block_0", "block_1", "block_2")] == [2, 2, 1]
    assert multirate.loss_decrease.take(blocks_of(model)) == {}
    multirate.detach()


def test_loss_decrease_is_that_of_adam_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.0)
    with Multirate(MultirateConfig.two_rate("1", 2, turns="fixed", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        for step in range(3):
            multirate.begin_step(step)
            before = [p.detach().clone() for p in model[0].parameters()]
            model(torch.randn(3, 4)).square().sum().backward()
            if step == 0:
                optimizer.step()
                moved = [p.detach() - b for p, b in zip(model[0].parameters(), before, strict=True)]
            else:
                last = [p.grad.clone() for p in model[0].parameters() if p.grad is not None]
                optimizer.step()
            optimizer.zero_grad()
        (expected,) = [-sum((g * m).sum() for g, m in zip(last, moved, strict=True))]
        assert multirate.loss_decrease.take(blocks_of(model))["block_0"].decrease == pytest.approx(float(expected))


def test_a_step_that_overflows_has_no_loss_decrease() -> None:
    averages = LossDecreaseAverages()
    averages.add({"a": float("inf"), "b": 1.0}, 2)
    averages.add({"a": 3.0, "b": 2.0}, 2)
    assert averages.take({"a": "x", "b": "x"})["x"].decrease == 3.0 + 1.5


def test_decreases_on_a_device_are_read_together_when_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_decrease, "is_on_host", lambda tensor: False)
    averages, names = LossDecreaseAverages(), ["a", "b"]
    parameters = [torch.zeros(1), torch.zeros(1)]
    with Waits() as waits:
        for i in range(3):
            sums = torch.full((2,), -2.0 * i)
            averages.add_later(names, InnerProducts(parameters, sums, 2.0), 0.5, 4)
        assert not waits.number
        found = averages.take({"a": "x", "b": "y"})
    assert found == {"x": BlockLossDecrease(0.5, 4), "y": BlockLossDecrease(0.5, 4)}
    assert waits.number == {"tolist": 1}


def test_decreases_that_no_log_takes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_decrease, "is_on_host", lambda tensor: False)
    averages = LossDecreaseAverages()
    for _ in range(2 * MAX_UNREAD + 3):
        averages.add_later(["a"], InnerProducts([torch.zeros(1)], torch.ones(1), 1.0), 1.0, 1)
    assert len(averages._unread) <= MAX_UNREAD
    assert averages.take({"a": "x"})["x"].decrease == -1.0


def test_blocks_are_those_of_the_stack_and_what_is_around_it() -> None:
    model, _ = example("bert")
    assert list(dict.fromkeys(blocks_of(model).values())) == ["embeddings", *(f"block_{i}" for i in range(4)), "head"]
    flat = nn.ModuleDict({"low": nn.Linear(2, 2), "high": nn.Linear(2, 2)})
    assert set(blocks_of(flat).values()) == {"low", "high"}


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_logs_are_those_of_automatic_periods(family: str) -> None:
    model, _ = FAMILIES[family]()
    groups = assign(MultirateConfig(block_groups(model), turns="fixed"), model)
    # The head and the top block are one rate group.
    assert all("+" not in group for group in list(groups)[1:])
    blocks = blocks_of(model)
    found = {group: {blocks[name] for name in names} for group, names in groups.items()}
    assert found == {group: set(group.split("+")) for group in groups}
    assert blocks.keys() == {name for names in groups.values() for name in names}


def test_backward_costs_of_blocks_are_those_of_a_full_step() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    # The lowest layer needs no gradient of its input.
    assert backward_costs(layers_of(model), blocks_of(model)) == {"block_0": 16, "block_1": 32, "block_2": 32}


def test_logs_have_what_was_measured(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, max_steps=2 * PERIOD + 1, multirate_log="all")
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["multirate/full_share"] for entry in logs[:PERIOD]] == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert all(entry["multirate/seconds_full_step"] > 0 for entry in logs)
    summary = trainer.multirate.timing.summary()
    assert logs[-1]["multirate/seconds_fast_step"] == summary["seconds_fast_step"]
    # At full steps but the first, every block has a loss decrease.
    blocks = list(dict.fromkeys(blocks_of(trainer.model).values()))
    with_decrease = [i for i, entry in enumerate(logs) if "multirate/loss_decrease/head" in entry]
    assert with_decrease == [PERIOD, 2 * PERIOD]
    assert all(f"multirate/loss_decrease/{block}" in logs[PERIOD] for block in blocks)
    assert logs[PERIOD]["multirate/loss_decrease_age/block_0"] == PERIOD
    assert logs[PERIOD]["multirate/loss_decrease_age/head"] == 1


DEFAULT = {
    f"multirate/{key}" for key in ("phase", "seconds_full_step", "seconds_fast_step", "speedup", "speedup_predicted")
} | ({"multirate/grad_norm_full"} if FIVE else set())


def ours(entries: list[dict[str, float]]) -> set[str]:
    return {key for entry in entries for key in entry if key.startswith("multirate/")}


def test_logs_are_brief_and_the_record_has_everything(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, CONFIG, max_steps=5 * PERIOD)
    trainer.train()
    assert ours(trainer.state.log_history) == DEFAULT
    # The last step but three is the fifth full one.
    with_speedup = [entry["step"] for entry in trainer.state.log_history if "multirate/speedup" in entry]
    assert with_speedup == list(range(4 * PERIOD + 1, 5 * PERIOD + 1))
    blocks = list(dict.fromkeys(blocks_of(trainer.model).values()))
    kept = ours(read_record(tmp_path).logs)
    assert kept >= DEFAULT | {f"multirate/loss_decrease/{block}" for block in blocks} | {"multirate/full_share"}


def test_all_figures_are_logged_on_request(tmp_path: Path) -> None:
    model, rows = example("bert")
    args = MultirateTrainingArguments(str(tmp_path), **DEFAULTS, multirate_log="all")
    by_arguments = MultirateTrainer(model=model, args=args, train_dataset=rows, multirate=CONFIG)
    by_keyword = trainer_for(tmp_path, CONFIG, multirate_log="all")
    for trainer in (by_arguments, by_keyword):
        trainer.train()
        assert ours(trainer.state.log_history) == ours(read_record(tmp_path).logs) > DEFAULT


def test_any_other_setting_of_the_logs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multirate_log must be one of"):
        MultirateTrainingArguments(str(tmp_path), **DEFAULTS, multirate_log="none")
    with pytest.raises(TypeError, match="multirate_log must be one of"):
        trainer_for(tmp_path, CONFIG, multirate_log=True)


class Named(nn.Module):
    """Children with names that MLflow refuses in a key, two of which differ in such a character alone."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a+b", "a*b", "c/d é", "head"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.children():
            x = layer(x)
        return {"loss": x.square().mean()}


def test_keys_are_valid_whatever_modules_are_called(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate("head\\.", PERIOD, turns="fixed", idle="drift")
    trainer = MultirateTrainer(
        model=Named(), args=arguments(tmp_path), multirate=config, multirate_log="all",
        train_dataset=[{"x": torch.randn(4)} for _ in range(8)],
    )  # fmt: skip
    trainer.train()
    keys = ours(trainer.state.log_history)
    assert {
        "multirate/loss_decrease/a_b",
        "multirate/loss_decrease/a_b_",
        "multirate/loss_decrease/c_d _",
        "multirate/loss_decrease/head",
    } <= keys
    assert all(re.fullmatch(r"multirate/([a-z_]+|[a-z_]+/[\w. -]+)", key, re.ASCII) for key in keys)
    assert "multirate/loss_decrease/a+b" in ours(read_record(tmp_path).logs)


def test_a_record_keeps_the_figures_of_blocks_of_some_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_multirate.trainer.log_values.BLOCK_ENTRIES", 10)
    entries = [{"step": float(step), "multirate/full_share": 0.5} for step in range(400)]
    detailed = BlockEntries()
    for step, entry in enumerate(entries):
        if step % 4 == 0:
            entry |= {"multirate/loss_decrease/head": 1.0, "multirate/loss_decrease_age/head": 1.0}
        detailed.add(entry)
    kept = [entry["step"] for entry in entries if "multirate/loss_decrease/head" in entry]
    assert kept[:4] == [0.0, 32.0, 64.0, 96.0]
    assert 10 <= len(kept) <= 20
    assert all("multirate/full_share" in entry for entry in entries)
    assert [entry["step"] for entry in entries if "multirate/loss_decrease_age/head" in entry] == kept


def tensors() -> int:
    gc.collect()
    return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize(
    "config",
    [CONFIG, MultirateConfig.ladder([1, 2, 4], turns="fixed", idle="drift"), MultirateConfig.auto(turns="fixed")],
)
def test_nothing_is_kept_for_every_step(tmp_path: Path, config: MultirateConfig) -> None:
    numbers: list[int] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (25, 25 + 4 * PERIOD):
                numbers.append(tensors())

    settings = {"max_steps": 25 + 4 * PERIOD, "logging_strategy": "no", "optim": "sgd", "callbacks": [Look()]}
    trainer_for(tmp_path, config, **settings).train()
    assert numbers[0] == numbers[1]


def test_gradient_norms_are_apart_by_kind(tmp_path: Path) -> None:
    single = trainer_for(tmp_path / "each", CONFIG, max_steps=PERIOD, max_grad_norm=1e9)
    single.train()
    settings = {"max_steps": PERIOD, "logging_steps": PERIOD, "max_grad_norm": 1e9}
    trainer = trainer_for(tmp_path, CONFIG, multirate_log="all", **settings)
    trainer.train()
    norms = [entry["grad_norm"] for entry in history(single)]
    (entry,) = history(trainer)
    if "multirate/grad_norm_full" not in entry:
        pytest.skip("transformers 4.57 has no method that clips")
    assert entry["multirate/grad_norm_full"] == pytest.approx(norms[0])
    assert entry["multirate/grad_norm_fast"] == pytest.approx(sum(norms[1:]) / (PERIOD - 1))


def test_standard_training_logs_nothing_more(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.off(), multirate_record=True)
    trainer.train()
    assert not [key for entry in trainer.state.log_history for key in entry if key.startswith("multirate")]
    assert read_record(tmp_path).standard


def test_the_bar_shows_phase_and_speed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Bar:
        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert not refresh
            seen.append(text)

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

    monkeypatch.setattr("transformers.trainer_callback.tqdm", lambda **kwargs: Bar())
    trainer = trainer_for(tmp_path, CONFIG, disable_tqdm=False)
    assert any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)
    trainer.train()
    assert [text.partition(",")[0] for text in seen] == [
        "full 1/4",
        "fast 2/4",
        "fast 3/4",
        "fast 4/4",
        "full 1/4",
        "fast 2/4",
    ]
    assert not any(text.endswith("x") for text in seen)  # two full steps, of which the first is no measure
    seen.clear()
    trainer_for(tmp_path, CONFIG, disable_tqdm=False, max_steps=5 * PERIOD).train()
    assert [text.endswith("x") for text in seen] == [step >= 4 * PERIOD for step in range(5 * PERIOD)]


def test_the_record_holds_what_was_logged(tmp_path: Path) -> None:
    _, rows = example("bert")
    trainer = trainer_for(tmp_path, CONFIG, eval_dataset=rows)
    trainer.train()
    trainer.evaluate()
    record = read_record(tmp_path)
    assert record.steps["full"] == [1, 0, 0, 0, 1, 0]
    assert [entry["loss"] for entry in record.logs if "loss" in entry] == [
        entry["loss"] for entry in history(trainer) if "loss" in entry
    ]
    assert record.logs[-1]["eval_loss"] == trainer.state.log_history[-1]["eval_loss"]
    assert record.config == CONFIG.to_dict()
    assert record.data["rows"] == len(rows)
    sizes = sum(block["parameters"] for block in record.blocks.values())
    assert sizes == sum(parameter.numel() for parameter in trainer.model.parameters())
    assert set(record.blocks["block_3"]["groups"]) == {"fast"}
    assert set(record.blocks["block_0"]["groups"]) == {"slow"}


def test_the_record_of_a_resumed_run_is_whole(tmp_path: Path) -> None:
    _, rows = example("bert")
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    settings |= {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": rows}
    trainer_for(tmp_path, CONFIG, max_steps=5, **settings).train()
    resumed = trainer_for(tmp_path, CONFIG, max_steps=9, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    whole = trainer_for(tmp_path / "whole", CONFIG, max_steps=9, **settings)
    whole.train()
    one, other = read_record(tmp_path), read_record(tmp_path / "whole")
    assert one.steps["full"] == other.steps["full"]
    for name, number in (("steps", 9), ("full_steps", 3), ("fast_steps", 6)):
        assert one.summary[name] == other.summary[name] == number
    evaluated = [entry["eval_runtime"] for entry in one.logs if "eval_runtime" in entry]
    assert len(evaluated) == 9
    assert sum(evaluated) < one.summary["seconds_aside"]["evaluation"] < one.summary["seconds"]
    steps = [entry["step"] for entry in one.logs if "loss" in entry]
    assert steps == list(range(1, 10))
    seconds = [entry["seconds"] for entry in one.logs]
    assert seconds == sorted(seconds)
    # `Trainer` of 4.57 goes on with other rows in the second epoch, which begins after six steps.
    sure = 9 if FIVE else 6
    assert one.data["checksums"][:sure] == other.data["checksums"][:sure]
    assert one.data["rows"] == other.data["rows"] == len(rows)


@pytest.mark.parametrize("text", ["{", '{"format": 0}'])
def test_a_record_that_cannot_be_read_does_not_keep_a_run_from_resuming(
    tmp_path: Path, warnings_of: Any, text: str
) -> None:
    trainer_for(tmp_path, CONFIG, max_steps=3, save_strategy="steps", save_steps=3).train()
    (tmp_path / FILE).write_text(text)
    resumed = trainer_for(tmp_path, CONFIG, max_steps=5)
    resumed.train = lambda: MultirateTrainer.train(resumed, str(tmp_path / "checkpoint-3"))
    assert "the record of the resumed run cannot be read" in warnings_of(resumed)
    record = read_record(tmp_path)
    assert (record.start_step, record.steps["full"]) == (3, [0, 1])


def test_the_record_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    trainer_for(tmp_path / "long", CONFIG, max_steps=3, save_strategy="steps", save_steps=3).train()
    trainer_for(tmp_path, CONFIG, max_steps=2).train()
    trainer_for(tmp_path, CONFIG, max_steps=5).train(str(tmp_path / "long" / "checkpoint-3"))
    assert read_record(tmp_path).start_step == 3


def test_the_record_of_a_run_with_other_losses_is_not_continued(tmp_path: Path, warnings_of: Any) -> None:
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    trainer_for(tmp_path / "other", CONFIG, max_steps=3, learning_rate=0.1, **saves).train()
    trainer_for(tmp_path, CONFIG, max_steps=5).train()
    losses = {entry["step"]: entry["loss"] for entry in read_record(tmp_path).logs if "loss" in entry}
    resumed = trainer_for(tmp_path, CONFIG, max_steps=5)
    resumed.train = lambda: MultirateTrainer.train(resumed, str(tmp_path / "other" / "checkpoint-3"))
    assert "is of another run, because it has other losses than the checkpoint" in warnings_of(resumed)
    record = read_record(tmp_path)
    assert record.start_step == 3
    assert all(entry["loss"] != losses[entry["step"]] for entry in record.logs if "loss" in entry)


def test_the_checksum_tells_data_apart() -> None:
    batch = {"x": torch.arange(6.0), "words": ["a"], "pairs": (torch.ones(1), torch.zeros(1))}
    same = {"words": ["a"], "pairs": (torch.ones(1), torch.zeros(1)), "x": torch.arange(6.0)}
    assert checksum([batch]) == checksum([same])
    others: list[dict[str, Any]] = [
        batch | {"x": torch.arange(6.0).reshape(2, 3)},
        batch | {"x": torch.arange(6.0).double()},
        batch | {"x": torch.arange(6.0).flip(0)},
        batch | {"words": ["b"]},
        {"y": batch["x"]},
    ]
    assert len({checksum([other]) for other in [batch, *others]}) == 1 + len(others)
    assert checksum([{"x": object()}]) == checksum([{"x": object()}]) != checksum([{"x": None}])
    sparse, nested = (
        torch.eye(3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    )
    assert len({checksum([{"x": value, 1: 2}]) for value in (sparse, nested, torch.eye(3))}) == 3
    assert checksum([{"x": torch.ones(2, dtype=torch.bfloat16)}]) != checksum([{"x": torch.ones(())}])


def test_another_order_of_the_data_is_seen(tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        trainer_for(tmp_path / name, MultirateConfig.off(), data_seed=seed, max_steps=3, multirate_record=True).train()
    sums = {name: read_record(tmp_path / name).data["checksums"] for name in ("one", "same", "other")}
    assert sums["one"] == sums["same"] != sums["other"]


def test_an_error_in_training_leaves_the_record_of_what_there_was(tmp_path: Path) -> None:
    class Failing(MultirateTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise ArithmeticError("enough")
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(ArithmeticError, match="enough"):
        trainer_for(tmp_path, CONFIG, kind=Failing).train()
    assert read_record(tmp_path).steps["full"] == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "has no multirate_record.json"),
        ("{", "is not valid JSON"),
        ("{}", "lacks format"),
        ('{"format": 0}', "format 0"),
        ('{"format": 3}', "lacks arguments, blocks"),
    ],
)
def test_a_folder_without_a_record_of_this_version_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_record(tmp_path)


@pytest.fixture
def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MULTIRATE", "off")


def test_the_environment_turns_it_off(tmp_path: Path, switched_off: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        trainer = trainer_for(tmp_path, CONFIG)
    assert "HF_MULTIRATE=off" in caplog.text
    trainer.train()
    plain = trainer_for(tmp_path / "plain", None)
    plain.train()
    assert history(trainer) == history(plain)


def test_any_other_value_in_the_environment_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MULTIRATE", "0")
    with pytest.raises(ValueError, match="HF_MULTIRATE must be one of"):
        trainer_for(tmp_path, CONFIG)


def test_the_record_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MULTIRATE_RECORD", str(tmp_path / "kept" / "here"))
    trainer_for(tmp_path / "out", CONFIG).train()
    assert json.loads((tmp_path / "kept" / "here" / FILE).read_text())["format"] == FORMAT
    assert not (tmp_path / "out" / FILE).exists()


def test_the_model_card_has_a_section(tmp_path: Path) -> None:
    for name, config in (("multirate", CONFIG), ("standard", MultirateConfig.off())):
        trainer = trainer_for(tmp_path / name, config, multirate_record=True)
        trainer.train()
        trainer.create_model_card()
    card = (tmp_path / "multirate" / "README.md").read_text()
    assert card.startswith("---\n")
    assert card.count("## Multirate training") == 1
    assert f"| slow | {PERIOD} | drift |" in card
    summary = read_record(tmp_path / "multirate").summary
    assert f"| speed-up over full steps, whole run | {summary['speedup']:.4g} |" in card
    assert "standard training." in (tmp_path / "standard" / "README.md").read_text()
