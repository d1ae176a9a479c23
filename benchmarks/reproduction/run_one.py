"""One run: train a contender for its planned steps, and return plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.images import SteadyBatchNorm
from benchmarks.accuracy.loaded_rows import LoadedRows
from benchmarks.accuracy.tasks import Data
from benchmarks.budgets.contenders import Contender
from benchmarks.budgets.plan import Plan
from benchmarks.budgets.run_one import Training, gpu_name, settings_of, trained
from benchmarks.budgets.timing import time_contender
from benchmarks.machine import hardware, versions
from benchmarks.reproduction.contenders import CONTENDERS, RUNNING
from benchmarks.reproduction.tasks import TASKS, is_full, load


POINTS = 9
"""Points of a curve, a multiple of three."""


@dataclass(frozen=True)
class Spec:
    """What is run.

    Attributes:
        task: Name of the task.
        length: Epochs of all parameters, the name of a length of the task.
        method: Name of the contender.
        time_of: Name of the contender whose seconds it gets; empty for as many steps as all parameters.
        rate: Learning rate.
        seed: Seed of the head and of the order of the data, the same for all contenders.
        role: ``length`` to choose the length and ``trial`` to choose the rate, without test rows; or ``final``.
    """

    task: str
    length: str
    method: str
    time_of: str
    rate: float
    seed: int
    role: str

    def settings(self) -> dict[str, Any]:
        """All else that decides the result, but the steps."""
        return settings_of(TASKS[self.task], self.length, CONTENDERS[self.method])


_loaded = LoadedRows()


def adapted(data: Data, contender: Contender) -> Data:
    """The rows with the network that a contender trains."""
    if contender.setting.build != RUNNING:
        return data

    def model(seed: int) -> nn.Module:
        network = data.model(seed)
        for module in network.modules():
            if isinstance(module, SteadyBatchNorm):
                module.__class__ = nn.BatchNorm2d
                module.train()
        return network

    return replace(data, model=model)


def device_of(task: str) -> str:
    """Where a task is trained: at full scale on a GPU, if there is one."""
    return "cuda" if is_full(task) and torch.cuda.is_available() else "cpu"


def run(spec: Spec, plan: Plan, folder: Path | None) -> dict[str, Any]:
    """Run ``spec`` as planned. Only finals see test rows.

    Raises:
        RuntimeError: the run took other kinds of steps than were charged.
    """
    task, contender = TASKS[spec.task], CONTENDERS[spec.method]
    data = adapted(_loaded.of(task, folder, load), contender)
    device = device_of(spec.task)
    training = Training(task, contender, spec.rate, spec.seed, plan.steps, device)
    parts = {"validation": data.validation, **({"test": data.test} if spec.role == "final" else {})}
    watched = "test" if spec.role == "final" else "validation"
    measured = trained(training, data, parts, watched, 0 if spec.role == "trial" else POINTS)
    if plan.kinds:
        plan.require(spec.method, measured["kinds"])
    machine = {**hardware(), "versions": versions(), **gpu_name(device)}
    return {**asdict(spec), **measured, "settings": spec.settings(), "machine": machine}


def timed(function: str, contender: str, task: str, folder: Path | None) -> dict[str, Any]:
    """Reference seconds of the steps of a contender, and the machine. No contender has a head start."""
    del function
    data = adapted(_loaded.of(TASKS[task], folder, load), CONTENDERS[contender])
    device = device_of(task)
    line = time_contender(CONTENDERS[contender], TASKS[task], data, device)
    return {"line": line, "machine": {**hardware(), "versions": versions(), **gpu_name(device)}}
