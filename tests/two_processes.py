"""Started by test_distributed.py in one or two processes: train, and save what each process has in the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD

from hf_multirate import AveragedCopiesTrainer, CopiesConfig, MultirateConfig, MultirateTrainer, Subset
from runs import arguments, example, weights


def trainer_of(kind: str, folder: Path) -> Any:
    model, rows = example("bert")
    for module in model.modules():  # dropout would differ between one process and two
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    args = arguments(folder, per_device_train_batch_size=2 // int(os.environ.get("WORLD_SIZE", "1")), max_steps=6)
    common: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "optimizers": (optimizer, None)}
    if kind == "copies":
        return AveragedCopiesTrainer(**common, copies=CopiesConfig((1, 2)))
    if kind == "drift":
        return MultirateTrainer(**common, multirate=MultirateConfig.two_rate("last:1", 3))
    unit, period = {"element": ("element", 3), "neuron": ("neuron", 3), "step": ("element", 1)}[kind]
    subset = Subset(0.5, unit, biases=True, redraw="step" if kind == "step" else "cycle")
    return MultirateTrainer(**common, multirate=MultirateConfig.random_subgroups(period, subset))


def main() -> None:
    folder, kinds = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    for kind in kinds:
        try:
            trainer = trainer_of(kind, folder)
        except NotImplementedError as error:
            (folder / f"{kind}-{rank}.txt").write_text(str(error))
            continue
        # Plain Trainer multiplies a loss that is a mean by the number of processes.
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        torch.save(weights(trainer), folder / f"{kind}-{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
