"""What a Trainer says of its steps: in its logs, on its bar, in a record and on the model card."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, cast

from torch import nn

from hf_multirate.arguments import MultirateTrainingArguments
from hf_multirate.card import card_section
from hf_multirate.controlled import ControlledMixin
from hf_multirate.controller import Multirate
from hf_multirate.observation import Observation
from hf_multirate.progress import PhaseOnBar
from hf_multirate.record import FILE, RunRecord, read_record
from hf_multirate.shortfall import shortfall


logger = logging.getLogger(__name__)

RECORD_VARIABLE = "HF_MULTIRATE_RECORD"
"""Environment variable with a folder for the record, instead of ``output_dir``."""


class ObservedMixin(ControlledMixin):
    """Adds what was measured to all that Trainer writes; a subclass calls `_observe` behind `_control`."""

    multirate: Multirate
    multirate_log: str | None = None
    """Which figures are logged: ``"brief"`` or ``"all"``. None is the setting of the arguments, else ``"brief"``."""

    def _observe(self) -> None:
        self._observation: Observation | None = None
        self._warned = False
        if self.multirate.active:
            self.add_callback(PhaseOnBar(self.multirate, self.callback_handler.callbacks))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; a record of the run is in ``output_dir`` at the end, also after an error."""
        self._observation, self._warned = Observation(self.multirate, self.args), False
        try:
            return super().train(*args, **kwargs)
        finally:
            self._observation.finish()
            self._write_record()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; the time is that of loading data."""
        if not self._training or self._observation is None:
            return super().get_batch_samples(*args, **kwargs)
        with self.multirate.telemetry.elsewhere("data"):
            samples = super().get_batch_samples(*args, **kwargs)
        self._observation.see(samples[0])
        return samples

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As in `transformers.Trainer`; in training, the time is that of evaluation."""
        if not self._training:
            return super().evaluate(*args, **kwargs)
        with self.multirate.telemetry.elsewhere("evaluation"):
            return super().evaluate(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # Of transformers 5 alone: 4.57 has no such method and does not call this one.
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if self._observation is not None:
            self._observation.add_norm(norm)
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with what was measured of the steps behind ``loss``."""
        seen = self._observation
        figures: dict[str, float] = {}
        if seen is not None and self._training and self.multirate.attached and self.multirate.active:
            if "loss" in logs:
                figures = seen.figures()
                logs |= seen.shown(figures, self._log_setting())
            self._warn_once()
        super().log(logs, *args, **kwargs)
        if seen is not None:
            seen.note(figures | logs, self.state.global_step)
            if not self._training:
                self._write_record()

    def _log_setting(self) -> str:
        if self.multirate_log is not None:
            return self.multirate_log
        return self.args.multirate_log if isinstance(self.args, MultirateTrainingArguments) else "brief"

    def _warn_once(self) -> None:
        told = None if self._warned else shortfall(self.multirate.telemetry)
        if told is not None:
            self._warned = True
            logger.warning("%s", told)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._write_record()

    def _record_folder(self) -> str:
        return os.environ.get(RECORD_VARIABLE) or cast(str, self.args.output_dir)

    def _record(self) -> RunRecord | None:
        """That of the last run, in the process that writes; None before its first step."""
        seen = self._observation
        if seen is None or not seen.begun or not self.is_world_process_zero():
            return None
        return seen.record(self.train_dataset)

    def _write_record(self) -> None:
        record = self._record()
        if record is not None:
            record.write(self._record_folder())

    def _attach(self) -> None:
        self.multirate.total_steps = self.state.max_steps
        super()._attach()
        assert self._observation is not None  # made before training
        step = self.state.global_step
        self._observation.begin(cast(nn.Module, self.model), step, self._record_before() if step else None)

    def _record_before(self) -> RunRecord | None:
        """The record of the run that is resumed, if there is one to go on with."""
        folder = self._record_folder()
        if not Path(folder, FILE).is_file():
            return None
        try:
            return read_record(folder)
        except ValueError as error:  # no reason not to train
            logger.warning("the record of this run begins anew: %s", error)
            return None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with a section on rate groups and speed-up."""
        super().create_model_card(*args, **kwargs)
        record = self._record()
        card = Path(cast(str, self.args.output_dir), "README.md")
        if record is not None and card.is_file():
            text = f"{card.read_text(encoding='utf-8').rstrip()}\n\n{card_section(record)}"
            card.write_text(text, encoding="utf-8")
