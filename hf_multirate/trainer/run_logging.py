"""What a Trainer says of its steps: in its logs, on its bar, in a record and on the model card."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
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
    """Adds what was measured to all that Trainer writes; a subclass calls `_observe` when it is initialized."""

    multirate: Multirate
    multirate_log: str | None = None
    """Which figures are logged: ``"brief"`` or ``"all"``. None is the setting of the arguments, else ``"brief"``."""

    # A base class may log or evaluate in its constructor, before `_observe`.
    _observation: RunMetrics | None = None
    _observed: TrainerState | None = None
    _record_wanted: bool | None = None
    _warned = _unrecorded = False

    def _observe(self, record: bool | None = None) -> None:
        """``record`` is whether a run leaves a record; None is yes for all but standard training."""
        self._record_wanted = None if record is None else require_bool("multirate_record", record)
        if self.multirate.changes_training:
            self.add_callback(SpeedupProgressCallback(self.multirate, self.callback_handler.callbacks))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; a record of the run is in ``output_dir`` at the end, also after an error."""
        self._observation, self._observed = RunMetrics(self.multirate, self.args), None
        self._warned = self._unrecorded = False
        with self._never_in_the_way():
            self._try_record_folder()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._observation.finish()
            self._write_record()

    @contextmanager
    def _never_in_the_way(self) -> Iterator[None]:
        """A context for what only a record needs: whatever goes wrong there is a warning, once in a run."""
        try:
            yield
        except Exception as error:
            if not self._unrecorded:
                logger.warning(
                    "the record of this run cannot be kept in %s (%s: %s). Training goes on without it.",
                    self._record_folder(), type(error).__name__, error,
                )  # fmt: skip
            self._unrecorded = True

    def _recorded(self) -> bool:
        """Whether this process keeps a record of this run."""
        asked = bool(os.environ.get(RECORD_VARIABLE)) or self._record_wanted
        wanted = self.multirate.changes_training if asked is None else asked
        return wanted and self.is_world_process_zero()

    def _try_record_folder(self) -> None:
        """Write a file where the record will be, so that whoever starts a run hears of it if that is not possible."""
        if self._recorded():
            trial = Path(self._record_folder(), FILE)
            trial.parent.mkdir(parents=True, exist_ok=True)
            if trial.is_dir():
                raise IsADirectoryError(f"{FILE} is a folder")
            tempfile.TemporaryFile(dir=trial.parent).close()

    def _observe_attempt(self) -> None:
        """Forget what was seen of an attempt that ran out of memory: each one has a state of its own."""
        if self._training and self._observed is not self.state:
            if self._observed is not None:
                self._observation = RunMetrics(self.multirate, self.args)
            self._observed = self.state

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; the time is that of loading data."""
        self._observe_attempt()
        if not self._training or self._observation is None:
            return super().get_batch_samples(*args, **kwargs)
        with self.multirate.timing.outside_step("data"):
            samples = super().get_batch_samples(*args, **kwargs)
        with self._never_in_the_way():
            self._observation.add_batches(samples[0])
        return samples

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `transformers.Trainer`; in training, the time is that of evaluation."""
        if not self._training:
            return super().evaluate(*args, **kwargs)
        with self.multirate.timing.outside_step("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # Of transformers 5 alone: 4.57 has no such method and does not call this one.
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if self._observation is not None:
            self._observation.add_norm(norm)
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with what was measured of the steps behind ``loss``."""
        self._observe_attempt()
        seen = self._observation
        figures: dict[str, float] = {}
        if seen is not None and self._training and self.multirate.attached and self.multirate.changes_training:
            if "loss" in logs:
                figures = seen.log_values()
                logs |= seen.shown(figures, self._log_setting())
            self._warn_once()
        super().log(logs, *args, **kwargs)
        if seen is not None:
            seen.add_log_entry(figures | logs, self.state.global_step)
            if not self._training:
                self._write_record()

    def _log_setting(self) -> str:
        if self.multirate_log is not None:
            return self.multirate_log
        return self.args.multirate_log if isinstance(self.args, MultirateTrainingArguments) else "brief"

    def _warn_once(self) -> None:
        told = None if self._warned else slow_run_message(self.multirate.timing)
        if told is not None:
            self._warned = True
            logger.warning("%s", told)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._write_record()

    def _record_folder(self) -> str:
        return os.environ.get(RECORD_VARIABLE) or cast(str, self.args.output_dir)

    def _record(self) -> RunRecord | None:
        """That of the last run, in the process that writes; None before its first step, or if none was asked for."""
        seen = self._observation
        return seen.record(self.train_dataset) if seen is not None and seen.begun and self._recorded() else None

    def _write_record(self) -> None:
        with self._never_in_the_way():
            record = self._record()
            if record is not None:
                record.write(self._record_folder())

    def _attach(self) -> None:
        super()._attach()
        assert self._observation is not None  # made before training
        step = self.state.global_step
        self._observation.begin(cast(nn.Module, self.model), step, self._record_before() if step else None)

    def _record_before(self) -> RunRecord | None:
        """The record of the run that is resumed, if there is one to go on with."""
        folder = self._record_folder()
        if not self._recorded() or not os.path.lexists(Path(folder, FILE)):
            return None
        try:
            return read_record(folder)
        except ValueError as error:  # no reason not to train
            logger.warning("a new record of this run begins here, the one before cannot be used: %s", error)
            return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with a section on rate groups and speed-up."""
        super().create_model_card(*args, **kwargs)
        with self._never_in_the_way():
            record = self._record()
            card = Path(cast(str, self.args.output_dir), "README.md")
            if record is not None and card.is_file():
                write_text(card, f"{card.read_text(encoding='utf-8').rstrip()}\n\n{card_section(record)}")


class SpeedupProgressCallback(TrainerCallback):
    """Writes behind the bar that `transformers.ProgressCallback` draws.

    Args:
        multirate: The controller of the run.
        callbacks: The callbacks of Trainer, among which the bar is looked for.
    """

    def __init__(self, multirate: Multirate, callbacks: list[TrainerCallback]) -> None:
        self._multirate = multirate
        self._callbacks = callbacks

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After every step; the bar draws it when it draws itself."""
        del args, state, control, kwargs
        text = phase_text(self._multirate)
        for callback in self._callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_postfix_str(text, refresh=False)


def phase_text(multirate: Multirate) -> str:
    """The kind of the last step, with fixed turns its place in the cycle, and the speed-up.

    The speed-up is shown once enough steps of each kind were taken.
    """
    kind = "full" if multirate.is_full_step else "fast"
    # Drawn positions have no place to count from.
    place = f" {multirate.phase + 1}/{multirate.cycle}" if multirate.config.turns == "fixed" else ""
    timing = multirate.timing
    realised = timing.speedup_of_run(timing.elapsed) if has_enough_steps(timing) else None
    known = "" if realised is None else f", {realised:.2f}x"
    return f"{kind}{place}{known}"
