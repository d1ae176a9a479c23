"""State of the controller in the checkpoints of `transformers.Trainer`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_multirate.trainer.checkpoint_files import SavedState, StaleError, read_saved, require_complete, write_saved
from hf_multirate.trainer.step_controller import StepController


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ControllerCheckpointsMixin(_Base):
    """Writes the state of the controller into checkpoints, and reads it."""

    _files = "controller"
    """Stem of the two files in a checkpoint, and prefix of the log keys."""

    _controller: StepController
    _saved_state: SavedState | None
    _first_step: int

    def _require_complete(self, checkpoint: Any) -> None:
        """Raise `ValueError` if a run ended while it wrote ``checkpoint``, which has a value as for `train`."""
        if checkpoint is True and os.path.isdir(folder := cast(str, self.args.output_dir)):
            checkpoint = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
        if isinstance(checkpoint, (str, os.PathLike)) and self._controller.changes_training:
            require_complete(Path(checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self._controller.attached or not self._controller.changes_training:
            return  # in standard training, checkpoints are those of Trainer
        state = self._controller.state_dict()  # gathers shards, so all processes have to call it
        if not self.args.should_save:
            return
        skipped = self.state.global_step - self._first_step - self._controller.applied_steps
        config = self._controller.config.to_dict()
        write_saved(Path(output_dir, f"{self._files}.json"), self.state.global_step, skipped, config, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error) and "optimizer's group" not in str(error):
                raise
            raise ValueError(
                f"the optimizer of checkpoint {checkpoint} has other parameter groups than the optimizer of this run "
                f"({error}). Frozen groups are in no parameter group, and learning rates of the head or of depth have "
                "groups of their own: resume with the configuration of the checkpoint."
            ) from error
        if checkpoint is None or not self._controller.changes_training:
            return
        self._saved_state = self._read(Path(checkpoint, f"{self._files}.json"))
        config = self._controller.config.to_dict()
        if self._saved_state is not None and self._saved_state.config != config:
            logger.warning(
                "the configuration of checkpoint %s differs from the present one. The present one is used. "
                "Configuration of the checkpoint: %s", checkpoint, self._saved_state.config,
            )  # fmt: skip

    def _read(self, path: Path) -> SavedState | None:
        """The state of the controller in a checkpoint; None, with a warning, if it is missing or stale."""
        try:
            saved = read_saved(path)
        except StaleError as error:
            logger.warning(
                "checkpoint %s has %s and %s of another run: %s. Both files are ignored. The cycle continues at the "
                "step of the checkpoint, but drift and averaged copies start from scratch.",
                path.parent, path.name, path.with_suffix(".pt").name, error,
            )  # fmt: skip
            return None
        if saved is None:
            logger.warning(
                "checkpoint %s has no %s: it was written without multirate training, or with save_only_model=True. "
                "The cycle continues at the step of the checkpoint, but drift and averaged copies start from scratch.",
                path.parent, path.name,
            )  # fmt: skip
        return saved
