"""Two steps of every row at the size of the paper, on random data and with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.budgets.run_one import Training, trained
from benchmarks.budgets.tasks import base_rate
from benchmarks.reproduction import full_scale
from benchmarks.reproduction.contenders import CONTENDERS, Experiment, label
from benchmarks.tables import table


STEPS = 2
ROWS = 4


def table_of(experiment: Experiment, rows: Sequence[str]) -> str:
    """Kinds of steps and loss of every row."""
    lines = []
    for name in experiment.full_tasks:
        task = replace(full_scale.TASKS[name], batch_size=ROWS // STEPS)
        data = full_scale.random_data(task, ROWS)
        for row in rows:
            contender = CONTENDERS[row]
            rate = base_rate(task) * contender.setting.rate_scale
            run = trained(Training(task, contender, rate, 0, STEPS), data, {"test": data.test}, "test", STEPS)
            kinds = ", ".join(f"{number} x {kind}" for kind, number in run["kinds"].items())
            lines.append([name, label(row), kinds, f"{run['train_loss']:.3f}"])
    return table(["task", "trained", "steps", "loss"], lines)
