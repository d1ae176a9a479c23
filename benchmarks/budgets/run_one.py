"""One run of the benchmark at equal time: train a contender for its planned steps, and return plain values."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from benchmarks.accuracy.loaded_rows import LoadedRows
from benchmarks.accuracy.tasks import Data, Task
from benchmarks.accuracy.train_one import arguments
from benchmarks.accuracy.training_clock import TrainingClock
from benchmarks.budgets.build import Built, build
from benchmarks.budgets.contenders import CONTENDERS, Contender
from benchmarks.budgets.kinds import HEAD_START
from benchmarks.budgets.plan import Plan
from benchmarks.budgets.tasks import TASKS, accuracy, load
from benchmarks.budgets.timing import time_head_start, time_setting
from benchmarks.machine import hardware, versions


@dataclass(frozen=True)
class Spec:
    """What is run.

    Attributes:
        task: Name of the task.
        length: ``short`` or ``long``: the run that the budget is a share of.
        method: Name of the contender.
        budget: Share of the baseline's seconds.
        rate: Learning rate of the body.
        seed: Seed of the head and of the order of the data, the same for all contenders.
        role: ``trial`` to choose the rate, without test rows; or ``final`` at the chosen rate.
    """

    task: str
    length: str
    method: str
    budget: float
    rate: float
    seed: int
    role: str

    def settings(self) -> dict[str, Any]:
        """All else that decides the result, but the steps."""
        return settings_of(TASKS[self.task], self.length, CONTENDERS[self.method])


def settings_of(task: Task, length: str, contender: Contender) -> dict[str, Any]:
    """Settings of a task and of a contender, as results keep them."""
    left_out = ("name", "seeds", "needs", "rates")
    kept = {name: value for name, value in asdict(task).items() if name not in left_out}
    kept["epochs"] = dict(task.epochs)[length]
    return json.loads(json.dumps({"task": kept, "method": contender.settings}))


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        task: The task.
        contender: The contender.
        rate: Learning rate of the body.
        seed: Seed of the head and of the order of the data.
        steps: Steps of the optimizer.
        device: ``cpu`` or ``cuda``.
    """

    task: Task
    contender: Contender
    rate: float
    seed: int
    steps: int
    device: str = "cpu"


def train(spec: Spec, data: Data, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Run ``spec`` for ``steps`` steps. Only finals see test rows."""
    parts = {"validation": data.validation, **({"test": data.test} if spec.role == "final" else {})}
    training = Training(TASKS[spec.task], CONTENDERS[spec.method], spec.rate, spec.seed, steps, device)
    return {name: value for name, value in trained(training, data, parts).items() if name != "curve"}


def trained(training: Training, data: Data, parts: Mapping[str, Any], watched: str = "", points: int = 0) -> Any:
    """Train, and return plain values.

    Args:
        training: The training.
        data: The rows of the task.
        parts: Rows that are scored at the end, by name.
        watched: Name of the part that is scored ``points`` times in all, at equal distances of steps.
        points: Number of points of the curve; 0 for none.
    """
    task, contender, steps = training.task, training.contender, training.steps
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            task, training.rate, training.seed, by_length=data.by_length, steps=steps, folder=folder,
            device=training.device,
        )  # fmt: skip
        words = {"train_dataset": data.train, "data_collator": data.collator, "compute_metrics": accuracy}
        words |= {"preprocess_logits_for_metrics": data.scored}
        built = build(contender, data.model(training.seed), args, **words)
        trainer = built.trainer
        at = {round(steps * i / points) for i in range(1, points)} - {0, steps}
        kind = _synchronised(built.kind) if training.device == "cuda" else built.kind
        clock = TrainingClock(lambda: _score(trainer, parts[watched]), at, kind)
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
        metrics = {}
        for name, rows in parts.items():
            found = trainer.predict(rows).metrics
            metrics[f"{name}_metric"] = float(found["test_accuracy"])
            if data.scored is not None:
                metrics[f"{name}_loss"] = float(found["test_loss"])
        number = sum(p.numel() for group in trainer.optimizer.param_groups for p in group["params"])
    if points:
        clock.curve.append({"step": steps, "metric": metrics[f"{watched}_metric"]})
    curve = [{name: point[name] for name in ("step", "metric")} for point in clock.curve]
    seconds = {"process_seconds": clock.total.process, "wall_seconds": clock.total.wall}
    result = {**metrics, "train_loss": loss, "trainable_parameters": number, "steps": steps}
    kinds = kinds_of(built, clock, head_start=contender.head_start)
    return {**result, **seconds, "kinds": kinds, "curve": curve}


def _synchronised(kind: Callable[[], str]) -> Callable[[], str]:
    """``kind`` once the GPU has done all its work, so that the clock does not stop before."""

    def waited() -> str:
        torch.cuda.synchronize()
        return kind()

    return waited


def _score(trainer: Trainer, rows: Any) -> float:
    return float(trainer.predict(rows).metrics["test_accuracy"])


def kinds_of(built: Built, clock: TrainingClock, *, head_start: bool) -> dict[str, int]:
    """Number of steps of each kind that a run took, with its head start and what came between steps."""
    kinds = {HEAD_START: 1} if head_start else {}
    kinds |= {kind: len(seconds) for kind, seconds in clock.steps.items()}
    for kind, _, _ in built.aside:
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


_loaded = LoadedRows()


def run(spec: Spec, plan: Plan, folder: Path | None, device: str = "cpu") -> dict[str, Any]:
    """Run ``spec`` as planned, on ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: the run took other kinds of steps than were charged.
    """
    measured = train(spec, _loaded.of(TASKS[spec.task], folder, load), plan.steps, device)
    if CONTENDERS[spec.method].setting.kind != "vcas":
        plan.require(spec.method, measured["kinds"])
    machine = {**hardware(), "versions": versions(), **gpu_name(device)}
    return {**asdict(spec), **measured, "settings": spec.settings(), "machine": machine}


def gpu_name(device: str) -> dict[str, str]:
    """The name of a GPU, for the machine of a result; nothing for the CPU."""
    return {} if device == "cpu" else {"device": torch.cuda.get_device_name()}


def timed(function: str, contender: str, task: str, folder: Path | None, device: str = "cpu") -> dict[str, Any]:
    """Reference seconds of a contender: of its ``steps``, or of its ``head start``; and the machine."""
    measure = time_head_start if function == HEAD_START else time_setting
    line = measure(contender, TASKS[task], _loaded.of(TASKS[task], folder, load), device)
    return {"line": line, "machine": {**hardware(), "versions": versions(), **gpu_name(device)}}
