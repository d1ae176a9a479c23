"""One run of the benchmark at equal time: train a contender for its planned steps, and return plain values."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.tasks import Data, Task
from benchmarks.accuracy.train_one import arguments
from benchmarks.accuracy.training_clock import TrainingClock
from benchmarks.budgets.build import Built, build
from benchmarks.budgets.contenders import CONTENDERS
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
        """All else that decides the result, but the steps: settings of the task and of the contender."""
        left_out = ("name", "seeds", "needs", "rates")
        task = {name: value for name, value in asdict(TASKS[self.task]).items() if name not in left_out}
        task["epochs"] = dict(task["epochs"])[self.length]
        return json.loads(json.dumps({"task": task, "method": CONTENDERS[self.method].settings}))


def train(spec: Spec, data: Data, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Run ``spec`` for ``steps`` steps. Only finals see test rows."""
    task, contender = TASKS[spec.task], CONTENDERS[spec.method]
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            task, spec.rate, spec.seed, by_length=data.by_length, steps=steps, folder=folder, device=device
        )
        words = {"train_dataset": data.train, "data_collator": data.collator, "compute_metrics": accuracy}
        built = build(contender, data.model(spec.seed), args, **words)
        clock = TrainingClock(lambda: 0.0, set(), built.kind)
        trainer = built.trainer
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
        parts = {"validation": data.validation, **({"test": data.test} if spec.role == "final" else {})}
        metrics = {f"{n}_metric": trainer.predict(rows).metrics["test_accuracy"] for n, rows in parts.items()}
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    seconds = {"process_seconds": clock.total.process, "wall_seconds": clock.total.wall}
    result = {**metrics, "train_loss": loss, "trainable_parameters": trained, "steps": steps}
    return {**result, **seconds, "kinds": kinds_of(built, clock, head_start=contender.head_start)}


def kinds_of(built: Built, clock: TrainingClock, *, head_start: bool) -> dict[str, int]:
    """Number of steps of each kind that a run took, with its head start and what came between steps."""
    kinds = {HEAD_START: 1} if head_start else {}
    kinds |= {kind: len(seconds) for kind, seconds in clock.steps.items()}
    for kind, _, _ in built.aside:
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


_loaded: dict[str, Data] = {}


def loaded(task: Task, folder: Path | None) -> Data:
    """The rows of a task, kept until another is wanted."""
    if task.name not in _loaded:
        _loaded.clear()
        _loaded[task.name] = load(task, folder)
    return _loaded[task.name]


def run(spec: Spec, plan: Plan, folder: Path | None, device: str = "cpu") -> dict[str, Any]:
    """Run ``spec`` as planned, on ``cpu`` or ``cuda``.

    Raises:
        RuntimeError: the run took other kinds of steps than were charged.
    """
    measured = train(spec, loaded(TASKS[spec.task], folder), plan.steps, device)
    if CONTENDERS[spec.method].setting.kind != "vcas" and measured["kinds"] != plan.kinds:
        raise RuntimeError(
            f"{spec.method!r} took the kinds of steps {measured['kinds']}, but {plan.kinds} were planned and would be "
            "charged. The plan and the schedule of the contender differ: this is an error of the benchmark."
        )
    machine = {**hardware(), "versions": versions(), **named(device)}
    return {**asdict(spec), **measured, "settings": spec.settings(), "machine": machine}


def named(device: str) -> dict[str, str]:
    """The name of a GPU, for the machine of a result; nothing for the CPU."""
    return {} if device == "cpu" else {"device": torch.cuda.get_device_name()}


def timed(function: str, contender: str, task: str, folder: Path | None, device: str = "cpu") -> dict[str, Any]:
    """Reference seconds of a contender: of its ``steps``, or of its ``head start``; and the machine."""
    measure = time_head_start if function == HEAD_START else time_setting
    line = measure(contender, TASKS[task], loaded(TASKS[task], folder), device)
    return {"line": line, "machine": {**hardware(), "versions": versions(), **named(device)}}
