"""Started by a test in two processes: train for a given time, with a clock of its own in each process.

    python timed_processes.py FOLDER WRAPPER CASE

In the case "slower", the other process takes twice as long for a step from the 30th step on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.support.runs import weights
from tests.support.timed import by_kind, timed


RANK = int(os.environ["RANK"])


def cost(step: int, full: bool) -> float:
    return by_kind(step, full) * (2.0 if RANK == 1 and step >= 30 else 1.0)


def main(folder: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 0.25, "save_strategy": "steps", "save_steps": 0.5}
    trainer = timed(folder / "run", cost=cost, eval_dataset=timed(folder / "rows").train_dataset[:4], **settings)
    trainer.seconds_of_evaluation, trainer.seconds_of_saving = 1.0 + RANK, 0.5
    trainer.train()
    found = {
        "steps": trainer.state.global_step,
        "totals": trainer.train_time_plan.totals,
        "measured": trainer.train_time_plan.measured,
        "weights": sum(value.double().abs().sum().item() for value in weights(trainer).values()),
        "clock": trainer.train_time_clock.now,
        "last": trainer.lr_scheduler.get_last_lr(),
    }
    (folder / f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
