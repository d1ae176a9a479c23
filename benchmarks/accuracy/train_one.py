"""One run of the benchmark: train one method on a task, and return plain values."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.accuracy.methods import METHODS
from benchmarks.accuracy.tasks import TASKS, Data, Task, load
from benchmarks.accuracy.trainers import make_trainer
from benchmarks.accuracy.training_clock import TrainingClock
from benchmarks.machine import hardware, versions
from hf_multirate import MultirateTrainer


EVALUATIONS = {"short": 5, "long": 6}
WARM_UP = 3


@dataclass(frozen=True)
class Spec:
    """Task, length, method, learning rate and seed of a run.

    Attributes:
        role: ``trial`` to choose the learning rate, without test rows; ``final`` at the chosen rate; or ``reference``,
            a baseline run for the seconds of a commit and a processor.
    """

    task: str
    length: str
    method: str
    rate: float
    seed: int
    role: str

    def settings(self) -> dict[str, Any]:
        """All else that decides the result: settings of the task and of the method."""
        task = {
            name: value
            for name, value in asdict(TASKS[self.task]).items()
            if name not in ("name", "seeds", "needs", "rates", "bf16")
        }
        task["epochs"] = dict(task["epochs"])[self.length]
        task["evaluations"] = EVALUATIONS[self.length]
        task["precision"] = "bfloat16" if TASKS[self.task].bf16 else "float32"
        return json.loads(json.dumps({"task": task, "method": METHODS[self.method].settings}))


class SameOrder(TrainerCallback):
    """Every epoch after the first begins in a random state that depends only on the seed and its number.

    Batches of like length are drawn from the state that dropout draws from too. Without this, methods that run a part
    of the network without dropout would get other batches than the rest from the second epoch on.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the state; the first epoch keeps that of the seed."""
        if state.epoch:
            torch.manual_seed(1000 * args.seed + round(state.epoch))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows with the right label."""
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def steps_of(spec: Spec, data: Data) -> int:
    """Steps of the optimizer."""
    task = TASKS[spec.task]
    whole = dict(task.epochs)[spec.length] * -(-len(data.train) // task.batch_size)
    return max(1, round(whole * METHODS[spec.method].fraction))


def train(spec: Spec, data: Data, steps: int | None = None) -> dict[str, Any]:
    """Run ``spec``; ``steps`` is for warming up."""
    task = TASKS[spec.task]
    steps = steps or steps_of(spec, data)
    points = EVALUATIONS[spec.length]
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(task, spec.rate, spec.seed, by_length=data.by_length, steps=steps, folder=folder)
        words = {"train_dataset": data.train, "data_collator": data.collator, "compute_metrics": accuracy}
        trainer = make_trainer(METHODS[spec.method], data.model(spec.seed), args, **words)

        def score(rows: Any) -> float:
            return trainer.predict(rows).metrics["test_accuracy"]

        at = {round(steps * i / points) for i in range(1, points)} if spec.role != "trial" else set()
        clock = TrainingClock(lambda: score(data.test), at, lambda: _kind(trainer))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(SameOrder())
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        result = {"validation_metric": score(data.validation), "train_loss": loss, "trainable_parameters": trained}
        if spec.role != "trial":
            result["test_metric"] = score(data.test)
            end = {"step": steps, "process_seconds": clock.total.process, "wall_seconds": clock.total.wall}
            clock.curve.append({**end, "metric": result["test_metric"]})
    times = {"process_seconds": clock.total.process, "wall_seconds": clock.total.wall}
    clocked = {**times, "steps": steps, "phases": clock.phases(), "curve": clock.curve}
    return {**result, **clocked, "periods": _periods(trainer)}


_loaded: dict[str, Data] = {}


def run(spec: Spec, folder: Path | None) -> dict[str, Any]:
    """Run ``spec``, and first load the task and warm up, unless this process has."""
    if spec.task not in _loaded:
        _loaded.clear()
        _loaded[spec.task] = load(TASKS[spec.task], folder)
        train(Spec(spec.task, "short", "baseline", spec.rate, spec.seed, "trial"), _loaded[spec.task], WARM_UP)
    measured = train(spec, _loaded[spec.task])
    machine = {**hardware(), "versions": versions()}
    return {**asdict(spec), **measured, "settings": spec.settings(), "machine": machine}


def arguments(  # noqa: PLR0913  # the device comes on top of what decides a run
    task: Task, rate: float, seed: int, *, by_length: bool, steps: int, folder: str, device: str = "cpu"
) -> TrainingArguments:
    """Arguments of a run of ``steps`` steps: linear decay to zero, after a warm-up of 6 %."""
    return TrainingArguments(
        output_dir=folder, max_steps=steps, learning_rate=rate, seed=seed, weight_decay=task.weight_decay,
        per_device_train_batch_size=task.batch_size, per_device_eval_batch_size=2 * task.batch_size,
        train_sampling_strategy="group_by_length" if by_length else "random",
        optim=task.optim, optim_args=task.optim_args, warmup_steps=round(0.06 * steps), logging_strategy="no",
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=device == "cpu", dataloader_pin_memory=False,
        bf16=task.bf16,
    )  # fmt: skip


def _kind(trainer: Trainer) -> str:
    """The groups with a gradient at this step, for seconds by kind of step."""
    if not isinstance(trainer, MultirateTrainer):
        return "step"
    names, controller = list(trainer.multirate.partition), trainer.multirate
    return " + ".join(names[i] for i in controller.schedule.live(controller.step or 0))


def _periods(trainer: Trainer) -> list[int]:
    """Periods of the rate groups, as they were given or chosen."""
    return [group.period for group in trainer.multirate.groups] if isinstance(trainer, MultirateTrainer) else []
