"""Training for a given time: it ends with the time, so does the schedule, and the plan repeats it bit for bit."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, ProgressCallback, SchedulerType, TrainerCallback

from hf_multirate import MultirateConfig, MultirateSeq2SeqTrainer, MultirateTrainer, MultirateTrainingArguments
from hf_multirate.trainer.progress_schedule import BY_STEPS, WITHOUT_END
from hf_multirate.trainer.train_time import FILE, TrainTime
from tests.support.clock import Clock
from tests.support.launch import launch
from tests.support.runs import DEFAULTS, FIVE, arguments, assert_same, example, history, weights
from tests.support.timed import ROWS, SETTINGS, Stream, Timed, by_kind, timed


WARMUP = "warmup_steps" if FIVE else "warmup_ratio"
EVALUATED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 0.25, "eval_dataset": example("bert")[1][:4]}
SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def slower(step: int, full: bool) -> float:
    return by_kind(step, full) * (1.5 if step >= 25 else 1.0)


def rates(trainer: Any) -> list[float]:
    """The learning rate of each step."""
    return [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]


def planned(trainer: Any) -> list[int]:
    return [e["multirate/planned_steps"] for e in trainer.state.log_history if "multirate/planned_steps" in e]


def test_it_ends_with_the_time_and_the_schedule(tmp_path: Path) -> None:
    trainer = timed(tmp_path, **{WARMUP: 0.1})
    before = list(trainer.callback_handler.callbacks)
    output = trainer.train()
    assert trainer.train_time_clock.now == pytest.approx(60.0, abs=1.0)
    assert output.metrics["multirate/seconds_used"] == round(trainer.train_time_clock.now, 4)
    steps = trainer.state.global_step
    assert planned(trainer) == [steps] == [trainer.state.max_steps]
    assert trainer.state.num_train_epochs == -(-steps // (ROWS // 2))
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]
    found = rates(trainer)
    assert len(found) == steps
    assert found[0] == 0.0
    assert 0.95e-2 < max(found) <= 1e-2
    assert 0.0 < found[-1] < 1e-2 / 40
    # Nothing of the user's has changed.
    assert trainer.args.max_steps == -1
    assert trainer.args.num_train_epochs == 3.0
    assert trainer.callback_handler.callbacks == before


def test_half_of_the_steps_would_not_fit(tmp_path: Path) -> None:
    """The number of steps is that of the mean over kinds, not that of full steps."""
    trainer = timed(tmp_path, cost=lambda step, full: 1.0 if full else 0.2)
    trainer.train()
    assert trainer.state.global_step > 100
    assert trainer.train_time_clock.now == pytest.approx(60.0, abs=1.0)


def test_standard_training_has_it_as_well(tmp_path: Path) -> None:
    trainer = timed(tmp_path, multirate="off", cost=lambda step, full: 0.5)
    trainer.train()
    assert trainer.state.global_step == 120
    assert not list(tmp_path.glob("*record*"))


def test_stages_and_deepspeed_are_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "stages.json"
    path.write_text(MultirateConfig.stages([(0.5, MultirateConfig.off()), (1.0, MultirateConfig())]).to_json())
    with pytest.raises(NotImplementedError, match="multirate_train_time does not work with stages"):
        timed(tmp_path, multirate_config=str(path)).train()
    trainer = timed(tmp_path, multirate="off")
    trainer.is_deepspeed_enabled = True
    with pytest.raises(NotImplementedError, match="multirate_train_time does not work with DeepSpeed"):
        trainer.train()


class Started(Timed):
    """A head start of six seconds."""

    def _take_head_start(self, loader: Any) -> None:
        before = self._awaits_head_start()
        super()._take_head_start(loader)
        self.train_time_clock.now += 6.0 if before else 0.0


def test_a_head_start_is_part_of_the_time(tmp_path: Path) -> None:
    trainer = timed(tmp_path, kind=Started, multirate_head_start=4, multirate_head_start_steps=5)
    trainer.train()
    assert "multirate/head_start/steps" in trainer.state.log_history[0]
    assert trainer.train_time_clock.now == pytest.approx(60.0, abs=1.0)
    assert trainer.train_time_plan.measured[1] == pytest.approx(1.0 / 54.0)  # the head start took 6 of the 60 seconds
    assert len(planned(trainer)) == 1  # the first step, with the head start before it, is no slow machine


@pytest.mark.parametrize("first", ["head start", "evaluation"])
def test_what_comes_before_the_first_step_leaves_the_warmup_as_it_is(first: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lr_scheduler_type": "constant_with_warmup", WARMUP: 0.2, "cost": lambda *_: 0.5}
    if first == "head start":
        trainer = timed(tmp_path, kind=Started, multirate_head_start=4, multirate_head_start_steps=5, **settings)
    else:
        trainer = timed(tmp_path, eval_on_start=True, **(EVALUATED | {"eval_steps": 1000}), **settings)
        trainer.seconds_of_evaluation = 6.0
    trainer.train()
    found = rates(trainer)
    rising = found[: round(0.2 * len(found))]
    assert rising == pytest.approx([1e-2 * i / (0.2 * len(found)) for i in range(len(rising))], abs=1.5e-3)
    assert found[-1] == 1e-2
    assert trainer.train_time_clock.now == pytest.approx(60.0, abs=6.5)


def test_a_configuration_in_python_goes_with_what_the_time_covers(tmp_path: Path) -> None:
    model, rows = example("bert", ROWS)
    args = MultirateTrainingArguments(str(tmp_path), multirate_train_time_counts="training", **SETTINGS)
    config = MultirateConfig.for_time("1min", new_head=False)
    trainer = MultirateTrainer(model=model, args=args, train_dataset=rows, multirate=config)
    assert trainer._time_of(args) == TrainTime(60.0, "training")
    with pytest.raises(ValueError, match="multirate_train_time_counts is 'training', but there is no"):
        MultirateTrainer(model=model, args=args, train_dataset=rows)


def test_equal_steps_are_a_run_of_that_many_steps(tmp_path: Path) -> None:
    """Where every step takes the same, progress is that of steps, and the rates are those of max_steps."""
    trainer = timed(
        tmp_path / "timed", "50s", cost=lambda step, full: 0.5, lr_scheduler_type="cosine", **{WARMUP: 0.1}
    )
    trainer.train()
    args = MultirateTrainingArguments(
        str(tmp_path / "steps"), **(SETTINGS | {"max_steps": 100, "lr_scheduler_type": "cosine", WARMUP: 0.1})
    )
    model, rows = example("bert", ROWS)
    by_steps = MultirateTrainer(model=model, args=args, train_dataset=rows)
    by_steps.train()
    assert rates(trainer) == pytest.approx(rates(by_steps), rel=1e-6, abs=1e-12)
    assert_same(weights(trainer), weights(by_steps), exact=False)


def test_without_the_setting_nothing_is_added(tmp_path: Path) -> None:
    runs = []
    both = {
        "a": MultirateTrainingArguments(str(tmp_path / "a"), **(DEFAULTS | SAVED)),
        "b": arguments(tmp_path / "b", **SAVED),
    }
    for name, args in both.items():
        model, rows = example("bert", ROWS)
        trainer = MultirateTrainer(model=model, args=args, train_dataset=rows)
        trainer.train()
        assert trainer.train_time_plan is None
        assert isinstance(trainer.lr_scheduler, LambdaLR)
        assert "hf_multirate" not in repr(trainer.lr_scheduler.lr_lambdas), name
        runs.append(trainer)
    assert_same(weights(runs[0]), weights(runs[1]))
    assert_same(history(runs[0]), history(runs[1]))
    files = [{path.relative_to(tmp_path / run).as_posix() for path in (tmp_path / run).rglob("*")} for run in "ab"]
    assert files[0] == files[1]
    assert not any("train_time" in name for name in files[0])
    states = [json.loads((tmp_path / run / "checkpoint-6" / "trainer_state.json").read_text()) for run in "ab"]
    assert states[0]["stateful_callbacks"].keys() == states[1]["stateful_callbacks"].keys() == {"TrainerControl"}


def test_a_slower_machine_is_one_correction_without_a_jump(tmp_path: Path) -> None:
    trainer = timed(tmp_path, "2min", cost=slower, save_strategy="steps", save_steps=0.5)
    trainer.train()
    first, second = planned(trainer)
    assert second < first
    assert trainer.state.global_step == second
    assert trainer.train_time_clock.now == pytest.approx(120.0, rel=0.02)
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]
    changes = -np.diff([*rates(trainer), 0.0]) / 1e-2
    assert changes.min() > 0.0
    assert changes.max() < 1.0 / 100  # a full step is 1/120 of the time
    settled = trainer.train_time_plan.totals[0][0]
    assert len(set(np.round(changes[settled:], 6))) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {**EVALUATED, "logging_steps": 0.1},
        {**EVALUATED, "save_strategy": "steps", "save_steps": 0.25, "load_best_model_at_end": True},
        {"eval_dataset": EVALUATED["eval_dataset"], "eval_strategy": "epoch", "save_strategy": "epoch"},
        {"multirate_fast": "last:1", "multirate_period": 4, "multirate_idle": "drift"},
        {"multirate": "off", "lr_scheduler_type": "cosine", WARMUP: 0.2},
    ],
    ids=["ladder", "accumulation", "shares", "best", "epochs", "drift", "off"],
)
def test_a_plan_repeats_the_run_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    trainer = timed(tmp_path / "run", cost=slower, **settings)
    trainer.seconds_of_evaluation, trainer.seconds_of_saving = 0.5, 0.25
    trainer.train()
    plan = tmp_path / "run" / FILE
    again = timed(
        tmp_path / "again", None, cost=lambda step, full: 7.0, multirate_train_time_plan=str(plan), **settings
    )
    again.train()
    assert again.train_time_clock.now > 200.0
    assert_same(weights(trainer), weights(again))
    assert_same(history(trainer), history(again))
    assert again.state.max_steps == trainer.state.max_steps
    files = [json.loads(path.read_text()) | {"used": None} for path in (plan, tmp_path / "again" / FILE)]
    assert files[0] == files[1]


class Killed(TrainerCallback):
    """Saves a checkpoint after ``step`` steps, and ends training with an error."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step == self.step

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def is_exact(step: int) -> bool:
    """Whether Trainer itself resumes with the same bits: that of 4.57 only in the first epoch."""
    return FIVE or step <= ROWS // 2


# While steps are measured, at the step after which the number is settled, later, and after the correction.
@pytest.mark.parametrize("step", [4, 11, 12, 40, 70])
@pytest.mark.parametrize("restore", [False, True])
def test_killed_and_resumed(step: int, restore: bool, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"restore_callback_states_from_checkpoint": restore}
    whole = timed(tmp_path / "whole", cost=slower, **settings)
    whole.train()
    assert len(planned(whole)) == 2
    killed = timed(tmp_path / "run", cost=slower, callbacks=[Killed(step)], **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    assert killed._timed is None
    assert killed.args.max_steps == -1
    resumed = timed(tmp_path / "run", cost=slower, **settings)
    resumed.train(resume_from_checkpoint=True)
    # After a restart while steps are measured, its first step is not; all else is that of the whole run.
    used = resumed.state.log_history[-1]["multirate/seconds_used"]
    assert used == pytest.approx(60.0, rel=0.02)
    assert killed.train_time_clock.now + resumed.train_time_clock.now == pytest.approx(used, abs=1e-3)
    if step >= 11 and is_exact(step):
        assert_same(weights(whole), weights(resumed))
        assert_same(history(whole), history(resumed))
        assert resumed.train_time_plan.totals == whole.train_time_plan.totals
    assert resumed.lr_scheduler.get_last_lr() == [0.0, 0.0]
    assert resumed.state.global_step == resumed.state.max_steps


@pytest.mark.parametrize("step", [4, 30, 70])
def test_a_repeated_run_can_be_resumed(step: int, tmp_path: Path) -> None:
    whole = timed(tmp_path / "whole", cost=slower)
    whole.train()
    settings: dict[str, Any] = {"multirate_train_time_plan": str(tmp_path / "whole" / FILE)}
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path / "run", None, callbacks=[Killed(step)], **settings).train()
    resumed = timed(tmp_path / "run", None, **settings)
    resumed.train(resume_from_checkpoint=True)
    if is_exact(step):
        assert_same(weights(whole), weights(resumed))
        assert_same(history(whole), history(resumed))
    assert rates(resumed) == rates(whole)


def test_evaluation_and_saving_count_by_choice(tmp_path: Path) -> None:
    ends = {}
    for counts in ("everything", "training"):
        trainer = timed(
            tmp_path / counts, "2min", multirate_train_time_counts=counts,
            **EVALUATED, save_strategy="steps", save_steps=0.25,
        )  # fmt: skip
        trainer.seconds_of_evaluation, trainer.seconds_of_saving = 4.0, 2.0
        trainer.train()
        used = json.loads((tmp_path / counts / FILE).read_text())["used"]
        number = sum("eval_loss" in entry for entry in trainer.state.log_history)
        assert used["evaluation"] == 4.0 * number
        assert used["saving"] >= 2.0 * 3
        ends[counts] = trainer.train_time_clock.now, sum(used.values()), used["training"]
    assert ends["everything"][0] == pytest.approx(ends["everything"][1]) == pytest.approx(120.0, rel=0.02)
    assert ends["training"][2] == pytest.approx(120.0, rel=0.02)
    assert ends["training"][0] > 135.0


def test_an_evaluation_at_the_start_is_the_first_measured_one(tmp_path: Path) -> None:
    trainer = timed(tmp_path, "2min", **EVALUATED, eval_on_start=True)
    trainer.seconds_of_evaluation = 5.0
    trainer.train()
    assert trainer.train_time_clock.now == pytest.approx(120.0, rel=0.01 if FIVE else 0.05)
    assert planned(trainer)[0] == pytest.approx((120 - (25 if FIVE else 20)) / 0.55, rel=0.03)


@pytest.mark.parametrize("repeats", [1, 50])
@pytest.mark.parametrize("accumulation", [1, 5])
def test_data_without_a_length(repeats: int, accumulation: int, tmp_path: Path) -> None:
    """Also data that end: another epoch begins."""
    trainer = timed(tmp_path, train_dataset=Stream(repeats), gradient_accumulation_steps=accumulation)
    trainer.train()
    assert trainer.train_time_clock.now == pytest.approx(60.0, rel=0.05)
    assert trainer.state.global_step == trainer.state.max_steps > 80
    assert trainer.args.max_steps == -1
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]


@pytest.mark.parametrize("name", [k.value for k in SchedulerType if k.value not in BY_STEPS])
def test_every_schedule_with_its_last_rate(name: str, tmp_path: Path, warnings_of: Any) -> None:
    settings: dict[str, Any] = {
        "warmup_stable_decay": {"num_decay_steps": 0.25},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    }.get(name, {})
    evaluated = EVALUATED if name in ("reduce_lr_on_plateau", "greedy") else {}
    trainer = timed(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=settings, **evaluated)
    text = warnings_of(trainer)
    assert ("has no end" in text) == (name in WITHOUT_END)
    assert trainer.train_time_clock.now == pytest.approx(60.0, rel=0.02)
    ends = {"cosine_with_min_lr": 1e-3, "cosine_warmup_with_min_lr": 1e-3, "polynomial": 1e-7}
    if name not in WITHOUT_END:
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(ends.get(name, 0.0), abs=1e-10)
    elif name.startswith("constant"):
        assert set(rates(trainer)) == {1e-2}
    assert trainer.args.lr_scheduler_kwargs == settings


def test_more_epochs_than_asked_for_is_a_message(tmp_path: Path, warnings_of: Any) -> None:
    text = warnings_of(timed(tmp_path / "more", num_train_epochs=2))
    assert "multirate_train_time is 1 min, enough for 9." in text
    assert "num_train_epochs=2 has no effect" in text
    assert "num_train_epochs" not in warnings_of(timed(tmp_path / "fewer", num_train_epochs=100))


def test_the_number_of_steps_is_logged_with_the_losses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = timed(tmp_path, "2min", logging_steps=20)
    with caplog.at_level(logging.INFO, "hf_multirate"):
        trainer.train()
    entry = next(e for e in trainer.state.log_history if "multirate/planned_steps" in e)
    assert entry["step"] == 20
    assert entry["multirate/seconds_per_step"] == pytest.approx(0.55)
    assert any(e["step"] == 20 and "loss" in e for e in trainer.state.log_history)
    assert f"training ends after {trainer.state.max_steps} steps, 18." in caplog.text


def test_speed_in_the_summary(tmp_path: Path) -> None:
    trainer = timed(tmp_path)
    metrics = trainer.train().metrics
    assert metrics["train_samples_per_second"] == pytest.approx(2 * metrics["train_steps_per_second"], rel=0.01)
    assert trainer.state.log_history[-1]["train_samples_per_second"] == metrics["train_samples_per_second"]


def test_the_progress_bar(tmp_path: Path) -> None:
    seen: list[tuple[int | None, str]] = []

    class Look(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            bar = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressCallback)).training_bar
            seen.append((bar.total, bar.desc))

    trainer = timed(tmp_path, disable_tqdm=False, callbacks=[Look()])
    trainer.train()
    assert [total for total, _ in seen] == [None] * 11 + [trainer.state.max_steps] * (len(seen) - 11)
    assert seen[1][1] == "59 s left"
    assert re.fullmatch(r"(1|0\.\d+) s left", seen[-1][1])


def test_an_earlier_stop_is_the_users(tmp_path: Path) -> None:
    settings = EVALUATED | {"eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    trainer = timed(
        tmp_path, callbacks=[EarlyStoppingCallback(1, 100.0)], load_best_model_at_end=True,
        metric_for_best_model="loss", **settings,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 10
    assert not (tmp_path / FILE).exists()  # steps were measured only


def test_a_second_run_starts_afresh(tmp_path: Path) -> None:
    trainer = timed(tmp_path)
    trainer.train()
    first = trainer.state.global_step
    trainer.train()
    assert trainer.state.global_step == pytest.approx(first, abs=2)
    assert trainer.train_time_clock.now == pytest.approx(120.0, abs=2.0)
    trainer.args.multirate_train_time, trainer.args.max_steps = None, 5
    trainer.train()
    assert trainer.state.global_step == 5
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]


def test_a_smaller_batch_after_an_error_of_memory(tmp_path: Path) -> None:
    class Small(Timed):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if len(inputs["labels"]) > 2:
                self.train_time_clock.now += 5.0
                raise RuntimeError("CUDA out of memory. Tried to allocate too much.")
            return super().training_step(model, inputs, *args, **kwargs)

    trainer = timed(tmp_path, kind=Small, per_device_train_batch_size=4, auto_find_batch_size=True)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    assert trainer.train_time_clock.now == pytest.approx(70.0, abs=1.0)  # each of three attempts has its own
    assert trainer.train_time_plan.setup["batch size"] < 4


def test_each_trial_of_a_search_has_the_time(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ends: list[tuple[float, str]] = []

    class Searched(Timed):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            before = self.train_time_clock.now
            output = super().train(*args, **kwargs)
            ends.append((self.train_time_clock.now - before, self.args.lr_scheduler_type))
            return output

    trainer = timed(
        tmp_path, kind=Searched, model_init=lambda: example("bert")[0], eval_dataset=EVALUATED["eval_dataset"]
    )
    trainer.hyperparameter_search(
        lambda trial: {"lr_scheduler_type": trial.suggest_categorical("lr_scheduler_type", ["linear", "cosine"])},
        n_trials=2, backend="optuna", sampler=optuna.samplers.GridSampler({"lr_scheduler_type": ["linear", "cosine"]}),
    )  # fmt: skip
    assert [seconds for seconds, _ in ends] == pytest.approx([60.0, 60.0], abs=1.0)
    assert {name for _, name in ends} == {"linear", "cosine"}


def test_a_search_can_vary_the_time(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ends: dict[Any, float] = {}

    class Searched(Timed):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            before = self.train_time_clock.now
            output = super().train(*args, **kwargs)
            ends[self.args.multirate_train_time] = self.train_time_clock.now - before
            return output

    trainer = timed(
        tmp_path, kind=Searched, model_init=lambda: example("bert")[0], eval_dataset=EVALUATED["eval_dataset"]
    )
    trainer.args.multirate_train_time = None
    trainer.args.max_steps = -1
    times = [40, 60]
    trainer.hyperparameter_search(
        lambda trial: {"multirate_train_time": trial.suggest_categorical("multirate_train_time", times)},
        n_trials=2, backend="optuna", sampler=optuna.samplers.GridSampler({"multirate_train_time": times}),
    )  # fmt: skip
    assert ends == pytest.approx({40: 40.0, 60: 60.0}, abs=1.0)
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert not {"TrainTimeState", "TimedTrainingCallback"} & set(names)


def test_seq2seq(tmp_path: Path) -> None:
    from hf_multirate import MultirateSeq2SeqTrainingArguments

    class TimedSeq2Seq(MultirateSeq2SeqTrainer):
        train_time_clock = Clock()

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.train_time_clock.now += 1.0
            return super().training_step(*args, **kwargs)

    model, rows = example("t5")
    args = MultirateSeq2SeqTrainingArguments(str(tmp_path), multirate_train_time=40, **SETTINGS)
    trainer = TimedSeq2Seq(model=model, args=args, train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 40


def test_the_clock_is_that_of_the_machine() -> None:
    assert MultirateTrainer.train_time_clock is time.perf_counter


def test_too_short(tmp_path: Path) -> None:
    trainer = timed(tmp_path, "5s")
    with pytest.raises(
        ValueError, match=r"multirate_train_time is 5 s, which is too short: .* at least 10 are needed"
    ):
        trainer.train()
    assert not (tmp_path / FILE).exists()
    assert trainer.args.max_steps == -1


def test_schedules_that_cannot_follow(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lr_scheduler_type is 'inverse_sqrt', which is defined by a number of steps"):
        timed(tmp_path, lr_scheduler_type="inverse_sqrt").train()
    with pytest.raises(ValueError, match="warmup_steps is 5, but with multirate_train_time"):
        timed(tmp_path, warmup_steps=5).train()
    made = timed(tmp_path)
    optimizer = torch.optim.AdamW(made.model.parameters())
    made = timed(tmp_path)
    made.optimizer = torch.optim.AdamW(made.model.parameters())
    made.lr_scheduler = LambdaLR(made.optimizer, lambda step: 1.0)
    del optimizer
    with pytest.raises(ValueError, match="a LambdaLR was passed in optimizers, and its length cannot follow"):
        made.train()

    class Own(Timed):
        def create_scheduler(self, num_training_steps: int, *args: Any, **kwargs: Any) -> Any:
            self.lr_scheduler = LambdaLR(self.optimizer, lambda step: 1.0)
            return self.lr_scheduler

    with pytest.raises(RuntimeError, match="create_scheduler of Timed does not call super"):
        timed(tmp_path, kind=Own).train()


def test_max_steps_that_came_later(tmp_path: Path) -> None:
    trainer = timed(tmp_path)
    trainer.args.max_steps = 7
    with pytest.raises(ValueError, match="max_steps is 7 and multirate_train_time is given too"):
        trainer.train()


def test_a_plan_of_another_setup(tmp_path: Path) -> None:
    timed(tmp_path / "run").train()
    plan = str(tmp_path / "run" / FILE)

    def refused(**settings: Any) -> str:
        with pytest.raises(ValueError, match="which belongs to another set-up") as error:
            timed(tmp_path / "again", None, multirate_train_time_plan=plan, **settings).train()
        return str(error.value)

    assert "batch size is 2 in the plan and 4 now" in refused(per_device_train_batch_size=4)
    assert "gradient_accumulation_steps is 1 in the plan and 2 now" in refused(gradient_accumulation_steps=2)
    assert "rows is 24 in the plan and 6 now" in refused(train_dataset=example("bert", 6)[1])
    assert "lr_scheduler_type is 'linear' in the plan and 'cosine' now" in refused(lr_scheduler_type="cosine")
    assert "warm-up is 0.0 in the plan and 0.1 now" in refused(**{WARMUP: 0.1})
    assert "configuration is" in refused(multirate="off")


def test_checkpoints_that_do_not_fit(tmp_path: Path, warnings_of: Any) -> None:
    model, rows = example("bert", ROWS)
    args = MultirateTrainingArguments(str(tmp_path / "steps"), **(DEFAULTS | SAVED))
    MultirateTrainer(model=model, args=args, train_dataset=rows).train()
    with pytest.raises(ValueError, match="the checkpoint was written without multirate_train_time"):
        timed(tmp_path).train(resume_from_checkpoint=str(tmp_path / "steps" / "checkpoint-3"))
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, callbacks=[Killed(30)]).train()
    with pytest.raises(ValueError, match=r"another multirate_train_time: seconds is 60\.0 in the plan and 120\.0 now"):
        timed(tmp_path, "2min").train(resume_from_checkpoint=True)
    trainer = timed(tmp_path, lr_scheduler_type="cosine")
    trainer.train = lambda train=trainer.train: train(resume_from_checkpoint=True)
    assert "had another set-up, so its time may be missed: lr_scheduler_type is" in warnings_of(trainer)


def test_a_timed_checkpoint_without_the_setting(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path, callbacks=[Killed(30)]).train()
    model, rows = example("bert", ROWS)
    args = MultirateTrainingArguments(str(tmp_path), **(DEFAULTS | SAVED | {"max_steps": 34}))
    trainer = MultirateTrainer(model=model, args=args, train_dataset=rows)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 34


def test_a_plan_that_cannot_be_written(tmp_path: Path, warnings_of: Any) -> None:
    (tmp_path / FILE).mkdir(parents=True)
    assert f"{FILE} cannot be written" in warnings_of(timed(tmp_path))


@pytest.mark.distributed
def test_two_processes_take_the_slower_one(tmp_path: Path) -> None:
    launch(tmp_path, "ddp", 2, ["slower"], script="timed_processes.py")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["totals"]) >= 2
    assert second["clock"] == pytest.approx(60.0, rel=0.05)
    assert first["clock"] < 50.0
    assert {key: value for key, value in first.items() if key != "clock"} == {
        key: value for key, value in second.items() if key != "clock"
    }
    assert first["last"] == [0.0, 0.0]
