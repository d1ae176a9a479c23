"""Callbacks of a timed run: they call the trainer at the events of its loop, and hold the state for checkpoints."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_multirate.config.durations import shown_seconds


class TimedLoop(Protocol):
    """A trainer whose loop is timed."""

    def _begin_timed(self) -> None: ...

    def _measure(self) -> None: ...

    def _settle(self) -> None: ...


class TrainTimeState(TrainerCallback, ExportableState):
    """Holds the state of a timed run, which Trainer saves in ``trainer_state.json``."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """See `transformers.trainer_callback.ExportableState`."""
        return {"args": {}, "attributes": {"saved": self.saved}}


class TimedTrainingCallback(TrainerCallback):
    """Calls a trainer at the events of its loop, after the other callbacks.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: TimedLoop) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        del args, kwargs
        self._trainer._begin_timed()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Read the clock before the scheduler takes its step."""
        del args, kwargs
        self._trainer._measure()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Settle or correct the number of steps."""
        del args, kwargs
        self._trainer._settle()


def show_steps(callbacks: list[TrainerCallback], steps: int | None) -> None:
    """Set the number of steps of the progress bar; None shows no total."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.total = steps
            callback.training_bar.refresh()


def show_time_left(callbacks: list[TrainerCallback], seconds: float) -> None:
    """Set the text before the progress bar, which shows it at its next refresh."""
    for callback in callbacks:
        if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
            callback.training_bar.set_description_str(f"{shown_seconds(max(seconds, 0.0))} left", refresh=False)
