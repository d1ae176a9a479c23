"""Reports of a training run: log entries, progress bar, record of the run and model card."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_multirate.config.files import write_text
from hf_multirate.config.validation import require_bool
from hf_multirate.controller.multirate import Multirate
from hf_multirate.controller.step_timer import has_enough_steps, slow_run_message
from hf_multirate.reporting.run_record import FILE, RECORD_VARIABLE, RunRecord, card_section, read_record
from hf_multirate.trainer.arguments import MultirateTrainingArguments
from hf_multirate.trainer.lifecycle import TrainerLifecycleMixin
from hf_multirate.trainer.run_metrics import RunMetrics


logger = logging.getLogger(__name__)


class RunLoggingMixin(TrainerLifecycleMixin):
    """Adds measured values to the logs, the progress bar, the record and the model card of a Trainer.

    A subclass calls `_start_logging` at the end of its ``__init__``.
    """

    multirate: Multirate
    multirate_log: str | None = None
    """Logged values: ``"brief"`` or ``"all"``. None means the setting of the arguments, else ``"brief"``."""

    # A base class may log or evaluate in its constructor, before `_start_logging`.
    _run_metrics: RunMetrics | None = None
    _state_of_metrics: TrainerState | None = None
    _record_wanted: bool | None = None
    _warned = _record_failed = False

    def _start_logging(self, record: bool | None = None) -> None:
        """Set whether runs write a record: by default all but standard training do."""
        self._record_wanted = None if record is None else require_bool("multirate_record", record)
        if self.multirate.changes_training:
            self.add_callback(SpeedupProgressCallback(self.multirate, self.callback_handler.callbacks))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. Writes a record of the run into ``output_dir``, also after an error."""
        self._run_metrics, self._state_of_metrics = RunMetrics(self.multirate, self.args), None
        self._warned = self._record_failed = False
        with self._errors_as_warnings():
            self._check_record_folder()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._run_metrics.finish()
            self._write_record()

    @contextmanager
    def _errors_as_warnings(self) -> Iterator[None]:
        """A context for code that only the record needs: errors are logged as a warning, once per run."""
        try:
            yield
        except Exception as error:
            if not self._record_failed:
                logger.warning(
                    "the record of this run cannot be kept in %s (%s: %s). Training continues without a record.",
                    self._record_folder(), type(error).__name__, error,
                )  # fmt: skip
            self._record_failed = True

    def _writes_record(self) -> bool:
        """Whether this process writes a record of this run."""
        setting = bool(os.environ.get(RECORD_VARIABLE)) or self._record_wanted
        wanted = self.multirate.changes_training if setting is None else setting
        return wanted and self.is_world_process_zero()

    def _check_record_folder(self) -> None:
        """Check at the start of a run that the record can be written."""
        if self._writes_record():
            path = Path(self._record_folder(), FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(f"{FILE} is a folder")
            tempfile.TemporaryFile(dir=path.parent).close()

    def _reset_for_attempt(self) -> None:
        """Reset the metrics for a new attempt after an out-of-memory error; each attempt has its own state."""
        if self._training and self._state_of_metrics is not self.state:
            if self._state_of_metrics is not None:
                head_start = None if self._run_metrics is None else self._run_metrics.head_start
                self._run_metrics = RunMetrics(self.multirate, self.args)
                if head_start is not None:
                    self._run_metrics.add_head_start(head_start)
            self._state_of_metrics = self.state

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. The time counts as data loading."""
        self._reset_for_attempt()
        if not self._training or self._run_metrics is None:
            return super().get_batch_samples(*args, **kwargs)
        with self.multirate.timing.outside_step("data"):
            samples = super().get_batch_samples(*args, **kwargs)
        with self._errors_as_warnings():
            self._run_metrics.add_batches(samples[0])
        return samples

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `transformers.Trainer`. During training, the time counts as evaluation."""
        if not self._training:
            return super().evaluate(*args, **kwargs)
        with self.multirate.timing.outside_step("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # Only transformers 5 calls this method; 4.57 does not have it.
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if self._run_metrics is not None:
            self._run_metrics.add_norm(norm)
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See `transformers.Trainer`. Adds measured values to entries with a loss."""
        self._reset_for_attempt()
        metrics = self._run_metrics
        values: dict[str, float] = {}
        if metrics is not None and self._training and self.multirate.attached and self.multirate.changes_training:
            if "loss" in logs:
                values = metrics.log_values()
                logs |= metrics.selected(values, self._log_setting())
            self._warn_once()
        if metrics is not None and self._training and self.multirate.attached and "loss" in logs:
            logs |= metrics.learning_rates() | metrics.stage() | metrics.activation_cache()
        super().log(logs, *args, **kwargs)
        if metrics is not None:
            metrics.add_log_entry(values | logs, self.state.global_step)
            if not self._training:
                self._write_record()

    def _log_setting(self) -> str:
        if self.multirate_log is not None:
            return self.multirate_log
        return self.args.multirate_log if isinstance(self.args, MultirateTrainingArguments) else "brief"

    def _warn_once(self) -> None:
        message = None if self._warned else slow_run_message(self.multirate.timing)
        if message is not None:
            self._warned = True
            logger.warning("%s", message)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._write_record()

    def _record_folder(self) -> str:
        return os.environ.get(RECORD_VARIABLE) or cast(str, self.args.output_dir)

    def _record(self) -> RunRecord | None:
        """The record of the last run; None before its first step, or if this process writes none."""
        metrics = self._run_metrics
        if metrics is None or not metrics.begun or not self._writes_record():
            return None
        return metrics.record(self.train_dataset, self._seconds_to_train())

    def _seconds_to_train(self) -> float | None:
        """Seconds for which the last run was to train; None if its length is a number of steps."""
        return None

    def _write_record(self) -> None:
        with self._errors_as_warnings():
            record = self._record()
            if record is not None:
                record.write(self._record_folder())

    def _attach(self) -> None:
        super()._attach()
        assert self._run_metrics is not None  # made before training
        step = self.state.global_step
        self._run_metrics.begin(cast(nn.Module, self.model), step, self._record_before() if step else None)

    def _record_before(self) -> RunRecord | None:
        """The record of the resumed run; None if there is none or it cannot be read."""
        folder = self._record_folder()
        if not self._writes_record() or not os.path.lexists(Path(folder, FILE)):
            return None
        try:
            record = read_record(folder)
        except ValueError as error:  # training does not need the record
            logger.warning("the record of the resumed run cannot be read, so a new one is started: %s", error)
            return None
        if continues(record, self.state.log_history, self.state.global_step):
            return record
        logger.warning(
            "the record in %s is of another run, because it has other losses than the checkpoint. A new one is "
            "started.", folder,
        )  # fmt: skip
        return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """See `transformers.Trainer`. Adds a section on rate groups and speed-up."""
        super().create_model_card(*args, **kwargs)
        with self._errors_as_warnings():
            record = self._record()
            card = Path(cast(str, self.args.output_dir), "README.md")
            if record is not None and card.is_file():
                write_text(card, f"{card.read_text(encoding='utf-8').rstrip()}\n\n{card_section(record)}")


def continues(record: RunRecord, log_history: Sequence[Mapping[str, Any]], step: int) -> bool:
    """Whether the logged losses of ``record`` up to ``step`` are those of a resumed run.

    Args:
        record: The record.
        log_history: The log of the resumed run.
        step: Step at which it is resumed.
    """
    own, other = (
        {
            entry["step"]: entry["loss"]
            for entry in logs
            if record.start_step < entry["step"] <= step and math.isfinite(entry.get("loss") or math.nan)
        }
        for logs in (record.logs, log_history)
    )
    return own == other


class SpeedupProgressCallback(TrainerCallback):
    """Shows the kind of step and the speed-up on the progress bar of `transformers.ProgressCallback`.

    Args:
        multirate: The controller of the run.
        callbacks: The callbacks of Trainer, which contain the progress bar.
    """

    def __init__(self, multirate: Multirate, callbacks: list[TrainerCallback]) -> None:
        self._multirate = multirate
        self._callbacks = callbacks

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the text after every step. The bar shows it at its next refresh."""
        del args, state, control, kwargs
        text = phase_text(self._multirate)
        for callback in self._callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_postfix_str(text, refresh=False)


def phase_text(multirate: Multirate) -> str:
    """Text for the progress bar: kind of the last step, position in the cycle with fixed turns, and speed-up.

    The speed-up is shown once enough steps of each kind were taken.
    """
    kind = "full" if multirate.is_full_step else "fast"
    # With drawn turns, the position in the cycle does not determine the kind of step.
    place = f" {multirate.phase + 1}/{multirate.cycle}" if multirate.settled.turns == "fixed" else ""
    timing = multirate.timing
    realised = timing.speedup_of_run(timing.elapsed) if has_enough_steps(timing) else None
    speedup = "" if realised is None else f", {realised:.2f}x"
    return f"{kind}{place}{speedup}"
