"""Runs of Trainer and of MultirateTrainer on the same random rows, and the seconds of some of their steps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks import configs
from benchmarks.gpu.cells import Bench
from benchmarks.gpu.models import Network
from benchmarks.gpu.place import Cpu, require_precision
from hf_multirate import MultirateConfig, MultirateTrainer


BASELINE = "Trainer"
CONTENDERS: dict[str, MultirateConfig | None] = {
    BASELINE: None,
    "default": MultirateConfig(),
    "ladder 1,2,4": configs.ladder([1, 2, 4], "freeze"),
    "last:1": configs.two_rate("last:1", 4, "freeze"),
}
"""Configurations by name; None is Trainer without this package."""

ROWS = 64
"""Different rows of a run."""


class Repeated(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows again and again up to ``number``, so that a run is one epoch: between epochs a loader starts again."""

    def __init__(self, rows: Sequence[dict[str, Tensor]], number: int) -> None:
        self._rows, self._number = rows, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows[index % len(self._rows)]


class Window(TrainerCallback):
    """Wall seconds from the end of step ``first`` to the end of step ``last``; the device is waited for at both."""

    def __init__(self, place: Cpu, first: int, last: int) -> None:
        self.seconds = 0.0
        self._place, self._first, self._last = place, first, last
        self._begun = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the clock at the two steps."""
        if state.global_step in (self._first, self._last):
            self._place.synchronize()
            now = time.perf_counter()
            self.seconds, self._begun = now - self._begun, now


def arguments(bench: Bench, network: Network, folder: str, **settings: Any) -> TrainingArguments:
    """Arguments of a run that writes and logs nothing; ``settings`` are further ones, ``max_steps`` among them."""
    on_device = bench.place.kind == "cuda"
    defaults = {
        "per_device_train_batch_size": network.batch, "learning_rate": 1e-5, "optim": "adamw_torch_fused",
        "logging_strategy": "no", "save_strategy": "no", "report_to": [], "disable_tqdm": True,
        "use_cpu": not on_device, "dataloader_pin_memory": on_device,
    }  # fmt: skip
    return TrainingArguments(output_dir=folder, **(defaults | settings))


@contextmanager
def own_environment() -> Iterator[None]:
    """A context after which the variables of accelerate are as before.

    TrainingArguments sets some, such as the mixed precision in transformers 4.57, and the next run would read them.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def trainer_for(
    bench: Bench, network: Network, config: MultirateConfig | None, *, record: bool | None = False, **settings: Any
) -> Iterator[Trainer]:
    """A Trainer on a new model of the same weights, in a folder that is removed; None gives Trainer itself.

    Args:
        bench: Device and sizes.
        network: The network.
        config: The configuration.
        record: Whether MultirateTrainer writes its record; None for its default.
        settings: Further arguments of TrainingArguments, or ``folder``.

    Raises:
        SkippedError: the device has no bf16, and it is asked for.
    """
    require_precision(bench.place, "bf16" if settings.get("bf16") else "fp32")
    rows = network.rows(max(2 * network.batch, bench.number(ROWS, 8)))
    dataset = Repeated(rows, settings.get("max_steps", 0) * network.batch or len(rows))
    with own_environment(), tempfile.TemporaryDirectory() as temporary:
        args = arguments(bench, network, settings.pop("folder", temporary), **settings)
        model = network.make(bench.place.device)
        if config is None:
            trainer = Trainer(model=model, args=args, train_dataset=dataset)
        else:
            trainer = MultirateTrainer(
                model=model, args=args, train_dataset=dataset, multirate=config, multirate_record=record
            )
        trainer.remove_callback(PrinterCallback)
        yield trainer


def seconds_of_run(
    bench: Bench, network: Network, config: MultirateConfig | None, warm: int, steps: int, **settings: Any
) -> float:
    """Seconds of ``steps`` steps after ``warm`` others."""
    with trainer_for(bench, network, config, max_steps=warm + steps, **settings) as trainer:
        window = Window(bench.place, warm, warm + steps)
        trainer.add_callback(window)
        trainer.train()
    return window.seconds
