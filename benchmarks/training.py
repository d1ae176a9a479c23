"""One run of the benchmark: a contender trains on a task, and what it came to is a dictionary of plain values."""

from __future__ import annotations

import os
import platform
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from clock import Clock
from contenders import CONTENDERS
from contenders.build import make_trainer
from hf_multirate import MultirateTrainer
from tasks import TASKS, Data, Task, load


EVALUATIONS = {"short": 5, "long": 6}
PACKAGES = ("hf-multirate", "torch", "transformers", "accelerate", "peft", "datasets")
WARM_UP = 3


@dataclass(frozen=True)
class Spec:
    """What is run. A ``trial`` is for choosing the learning rate and never looks at test rows."""

    task: str
    length: str
    contender: str
    rate: float
    seed: int
    role: str

    @property
    def file_name(self) -> str:
        """Name of the file that keeps the result."""
        words = (self.task, self.length, self.contender, f"{self.rate:g}", str(self.seed), self.role)
        return "__".join(word.replace(" ", "_").replace(":", "") for word in words) + ".json"

    def configuration(self) -> dict[str, Any]:
        """All that decides the result."""
        task = {
            name: value for name, value in asdict(TASKS[self.task]).items() if name not in ("seeds", "needs", "rates")
        }
        task["epochs"] = dict(task["epochs"])[self.length]
        task["evaluations"] = EVALUATIONS[self.length]
        return {**asdict(self), "task_settings": task, "contender_settings": asdict(CONTENDERS[self.contender])}


def hardware() -> dict[str, Any]:
    """What the seconds are of."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = {line.partition(": ")[2] for line in lines if line.startswith("model name")}
    processor = ", ".join(sorted(models)) or platform.processor()
    sizes = {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"processor": processor, "machine": platform.machine(), **sizes}


class SameOrder(TrainerCallback):
    """Every epoch after the first begins in a random state that depends on the seed and its number alone.

    Batches of like length are drawn from the state that dropout draws from too. Methods that run a part of the
    network without dropout would get other batches than the rest from the second epoch on.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the state; in the first epoch it is that of the seed as it is."""
        if state.epoch:
            torch.manual_seed(1000 * args.seed + round(state.epoch))


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of rows with the right label."""
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def _arguments(spec: Spec, task: Task, by_length: bool, steps: int, folder: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder, max_steps=steps, learning_rate=spec.rate, seed=spec.seed, weight_decay=task.weight_decay,
        per_device_train_batch_size=task.batch_size, per_device_eval_batch_size=2 * task.batch_size,
        train_sampling_strategy="group_by_length" if by_length else "random",
        optim=task.optim, optim_args=task.optim_args, warmup_steps=round(0.06 * steps), logging_strategy="no",
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, bf16=task.bf16,
    )  # fmt: skip


def _kind(trainer: Trainer) -> str:
    """What gets a gradient at this step, for the account of time by kind of step."""
    if not isinstance(trainer, MultirateTrainer):
        return "step"
    names, controller = list(trainer.multirate.partition), trainer.multirate
    return " + ".join(names[i] for i in controller.schedule.live(controller.step or 0))


def _plans(trainer: Trainer) -> list[dict[str, Any]]:
    """With a budget, what was planned."""
    return [asdict(plan) for plan in trainer.multirate.plans] if isinstance(trainer, MultirateTrainer) else []


def steps_of(spec: Spec, data: Data) -> int:
    """Steps of the optimizer."""
    task = TASKS[spec.task]
    whole = dict(task.epochs)[spec.length] * -(-len(data.train) // task.batch_size)
    return max(1, round(whole * CONTENDERS[spec.contender].fraction))


def train(spec: Spec, data: Data, steps: int | None = None) -> dict[str, Any]:
    """Run ``spec``; ``steps`` is for warming up."""
    task, contender = TASKS[spec.task], CONTENDERS[spec.contender]
    steps = steps or steps_of(spec, data)
    points = EVALUATIONS[spec.length]
    with tempfile.TemporaryDirectory() as folder:
        args = _arguments(spec, task, data.by_length, steps, folder)
        words = {"train_dataset": data.train, "data_collator": data.collator, "compute_metrics": accuracy}
        trainer = make_trainer(contender, data.model(spec.seed), args, **words)

        def score(rows: Any) -> float:
            return trainer.predict(rows).metrics["test_accuracy"]

        at = set() if spec.role == "trial" else {round(steps * i / points) for i in range(1, points)}
        clock = Clock(lambda: score(data.test), at, lambda: _kind(trainer))
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
    clocked = {**times, "phases": clock.phases(), "curve": clock.curve}
    return {**result, **clocked, "steps": steps, "plans": _plans(trainer)}


_loaded: dict[str, Data] = {}


def run(spec: Spec, folder: Path | None) -> dict[str, Any]:
    """Load the task and warm up, unless this process has, and run ``spec``."""
    if spec.task not in _loaded:
        _loaded.clear()
        _loaded[spec.task] = load(TASKS[spec.task], folder)
        train(Spec(spec.task, "short", "plain", spec.rate, spec.seed, "trial"), _loaded[spec.task], WARM_UP)
    result = train(spec, _loaded[spec.task])
    return {
        "spec": spec.configuration(),
        **result,
        "precision": "bfloat16" if TASKS[spec.task].bf16 else "float32",
        "hardware": hardware(),
        "versions": {p: version(p) for p in PACKAGES},
    }
