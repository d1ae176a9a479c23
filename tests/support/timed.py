"""Trainers whose clock is set by the test: it moves with each step, evaluation and checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from hf_multirate import MultirateTrainer, MultirateTrainingArguments
from tests.support.clock import Clock
from tests.support.runs import DEFAULTS, example


ROWS = 24
SETTINGS: dict[str, Any] = {key: value for key, value in DEFAULTS.items() if key != "max_steps"}


class Timed(MultirateTrainer):
    """``cost`` of a step in seconds is a function of its index and of whether it is a full step."""

    cost: Callable[[int, bool], float]
    seconds_of_evaluation = seconds_of_saving = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.train_time_clock.now += self.cost(self.state.global_step, self.multirate.is_full_step)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.train_time_clock.now += self.seconds_of_evaluation
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        self.train_time_clock.now += self.seconds_of_saving
        super().save_model(*args, **kwargs)


def by_kind(step: int, full: bool) -> float:
    del step
    return 1.0 if full else 0.4


def timed(
    folder: Path,
    time: Any = "1min",
    *,
    cost: Callable[[int, bool], float] = by_kind,
    kind: type[Timed] = Timed,
    **rest: Any,
) -> Any:
    """A trainer for ``time``; ``rest`` are settings of the trainer or of its arguments."""
    model, rows = example("bert", ROWS)
    own = {"eval_dataset", "callbacks", "model_init", "optimizers", "train_dataset", "multirate_record"}
    kwargs = {"train_dataset": rows, **{key: rest.pop(key) for key in own & rest.keys()}}
    if "model_init" not in kwargs:
        kwargs["model"] = model
    args = MultirateTrainingArguments(str(folder), multirate_train_time=time, **(SETTINGS | rest))
    kind = type("Timed", (kind,), {"train_time_clock": Clock(), "cost": staticmethod(cost)})
    return kind(args=args, **kwargs)


class Stream(IterableDataset[Any]):
    """Rows without a length."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.repeats):
            yield from example("bert", ROWS)[1]
