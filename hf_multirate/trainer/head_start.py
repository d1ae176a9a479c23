"""A head start in `transformers.Trainer`, before the first step."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_multirate.controller.head_start import HeadStartResult, head_of, take_head_start, trainable_head
from hf_multirate.distributed.unsupported import check_head_start
from hf_multirate.model.random_state import random_state_restored
from hf_multirate.model.unwrap import unwrap_model
from hf_multirate.trainer.first_batches import first_batches
from hf_multirate.trainer.log_values import PREFIX
from hf_multirate.trainer.run_logging import RunLoggingMixin


HEAD_START = f"{PREFIX}head_start/"
"""Prefix of the log keys of a head start."""


TRL_METRICS = "_metrics"
"""Attribute of the trainers of TRL."""


class HeadStartMixin(RunLoggingMixin):
    """Gives a new head a head start on the first batches, with ``head_start`` of the configuration."""

    _started: nn.Module | None = None
    """The model that had its head start: a second ``train()`` goes on with a head that is no longer new."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. A head start comes before the first step of a run that is not resumed."""
        # Added here, so that it follows the callbacks of the user, which may set a seed.
        callback = _HeadStartCallback(self)
        self.add_callback(callback)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.remove_callback(callback)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """See `transformers.Trainer`."""
        if self._awaits_head_start():
            raise RuntimeError(
                f"head_start is {self.multirate.config.head_start}, but the training loop of {type(self).__name__} "
                "calls no on_epoch_begin of the callbacks, so the head start was not taken. Call it, or set "
                "head_start=0 and call hf_multirate.head_start(model, batches) before training."
            )
        return super().training_step(model, *args, **kwargs)

    def _check_head_start(self) -> None:
        """Raise an error before training if the model or the set-up allows no head start."""
        model = unwrap_model(cast(nn.Module, self.model))
        if self._started is not model:
            self._started = None  # model_init has made another one
        if self.multirate.config.head_start:
            check_head_start(cast(Trainer, self))
            # A frozen model may be only evaluated, or unfrozen before training.
            _ = trainable_head(model) if self._training else head_of(model)

    def _awaits_head_start(self) -> bool:
        if not (self.multirate.config.head_start and self._training) or self.state.global_step:
            return False
        return self._started is not unwrap_model(cast(nn.Module, self.model))

    def _take_head_start(self, loader: Any) -> None:
        """Train the head on the first batches of ``loader``, unless it had its head start."""
        model, config = unwrap_model(cast(nn.Module, self.model)), self.multirate.config
        if self.state.global_step and self._training:
            self._started = model  # a resumed run: its head is no longer new
        if loader is None or not self._awaits_head_start():
            return
        begun = time.perf_counter()
        with random_state_restored(model.parameters()), _metrics_restored(self):
            batches = first_batches(loader, config.head_start)
            group = dist.group.WORLD if self.args.world_size > 1 else None
            result = take_head_start(
                model, batches, self._head_start_loss, config.head_start_steps, config.head_start_lr, group
            )
        self._started = model
        self._log_head_start(result, time.perf_counter() - begun)

    def _head_start_loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs = self._prepare_inputs(dict(batch) if isinstance(batch, dict) else batch)
        # As in prediction_step of Trainer: a loss of the user's may divide by this number.
        number = self._get_num_items_in_batch([inputs], self.args.device)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=number)
        return cast(Tensor, loss).mean()

    def _log_head_start(self, result: HeadStartResult, seconds: float) -> None:
        values = {
            "batches": result.batches,
            "steps": result.steps,
            "learning_rate": result.learning_rate,
            "loss_before": result.loss_before,
            "loss_after": result.loss_after,
            "seconds": seconds,
        }
        self._reset_for_attempt()
        if self._run_metrics is not None:
            self._run_metrics.add_head_start(values)
        self.log({f"{HEAD_START}{key}": round(value, 6) for key, value in values.items()})


@contextmanager
def _metrics_restored(trainer: HeadStartMixin) -> Iterator[None]:
    """A context after which the metrics that ``compute_loss`` of TRL collects for the next log are as before."""
    before = copy.deepcopy(vars(trainer).get(TRL_METRICS))
    try:
        yield
    finally:
        if before is not None:
            vars(trainer)[TRL_METRICS] = before


class _HeadStartCallback(TrainerCallback):
    """Calls the head start at the start of the first epoch, before the first random number of its order is drawn."""

    def __init__(self, trainer: HeadStartMixin) -> None:
        self._trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the head start."""
        del args, state, control
        self._trainer._take_head_start(kwargs.get("train_dataloader"))
