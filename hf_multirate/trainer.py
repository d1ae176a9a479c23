"""The Trainer of transformers with multirate training: the loop is its own, four methods call ``super()``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_multirate.arguments import MultirateTrainingArguments
from hf_multirate.config import MultirateConfig
from hf_multirate.controller import Multirate


logger = logging.getLogger(__name__)

STATE_FILE = "multirate.json"
DRIFT_FILE = "multirate.pt"

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class MultirateMixin(_Base):
    """Multirate training for any subclass of `transformers.Trainer`: ``class Mine(MultirateMixin, TheirTrainer)``.

    Args:
        *args: What the other class takes.
        multirate: The rate groups. Without it those of ``args``, if it is a `MultirateTrainingArguments`, else
            ``MultirateConfig.two_rate()``.
        **kwargs: What the other class takes.

    Raises:
        ValueError: the rate groups do not fit the model.
        NotImplementedError: the run has several processes, or devices that share a step.
    """

    def __init__(self, *args: Any, multirate: MultirateConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if multirate is None:
            multirate = _from_arguments(self.args)
        elif not isinstance(multirate, MultirateConfig):
            raise TypeError(f"multirate takes a MultirateConfig, got {multirate!r}.")
        self.multirate = Multirate(multirate)
        self._refuse_many_devices()
        self.multirate.assign(cast(nn.Module, self.model))
        self._training = False
        self._begun = self._first_step = 0
        self._resumed: tuple[int, dict[str, Any] | None] = (0, None)

    def _refuse_many_devices(self) -> None:
        together = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.multirate.prunes and (self.args.world_size > 1 or self.args.n_gpu > 1 or together):
            raise NotImplementedError(
                f"multirate training runs on one device, got {self.args.world_size} processes with {self.args.n_gpu} "
                "devices each, or DeepSpeed or FSDP: gradients of idle parameters are not synchronised yet. Start one "
                "process (CUDA_VISIBLE_DEVICES=0), or train without it (--multirate off)."
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; model and optimizer are let go of at the end, also after an error."""
        self.multirate.detach()
        self._training, self._resumed = True, (0, None)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.multirate.detach()
            self._training = False

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`; refuses an optimizer that does not fit before the first step."""
        self.multirate.detach()
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._training:
            with self.multirate.attach(cast(nn.Module, self.model), optimizer):
                pass
        return optimizer

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, with backward skipped for the groups that are idle at this step."""
        if not self._training:
            return super().training_step(model, *args, **kwargs)
        if not self.multirate.attached:
            self._attach()
        if self.state.global_step != self._begun:
            self._begun = self.state.global_step
            self.multirate.select(self._first_step + self.multirate.applied)
        with self.multirate.pruned():
            return super().training_step(model, *args, **kwargs)

    def _attach(self) -> None:
        """Attach at the first micro-batch: only then optimizer, restored state and step are all there."""
        skipped, drift = self._resumed
        self.multirate.attach(cast(nn.Module, self.model), cast(torch.optim.Optimizer, self.optimizer))
        if drift is not None:
            self.multirate.load_state_dict(drift)
        # A step that a gradient scaler skips counts for Trainer, and not for the schedule of the groups.
        self._first_step = self.state.global_step - skipped
        self._begun = -1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with the phase that ``loss`` and ``grad_norm`` of the last step belong to."""
        if self._training and self.multirate.prunes and "loss" in logs:
            logs["multirate/phase"] = self.multirate.phase
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not (self.args.should_save and self.multirate.attached):
            return
        skipped = self.state.global_step - self._first_step - self.multirate.applied
        state = {"skipped_steps": skipped, "config": self.multirate.config.to_dict()}
        Path(output_dir, STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        torch.save(self.multirate.state_dict(), Path(output_dir, DRIFT_FILE))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.multirate.prunes:
            return
        path = Path(checkpoint, STATE_FILE)
        if not path.is_file():
            logger.warning(
                "checkpoint %s has no %s: it was written without multirate training, or with save_only_model=True. "
                "The cycle goes on at the phase of its step, and the drift begins anew.", checkpoint, STATE_FILE,
            )  # fmt: skip
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["config"] != self.multirate.config.to_dict():
            logger.warning(
                "the rate groups of checkpoint %s differ from those given, which are used. In the checkpoint: %s",
                checkpoint, state["config"],
            )  # fmt: skip
        path = Path(checkpoint, DRIFT_FILE)
        if not path.is_file():
            raise ValueError(f"checkpoint {checkpoint!r} has a {STATE_FILE} but no {DRIFT_FILE}: it is not complete.")
        self._resumed = (state["skipped_steps"], torch.load(path, map_location="cpu", weights_only=True))


def _from_arguments(args: TrainingArguments) -> MultirateConfig:
    return args.to_multirate_config() if isinstance(args, MultirateTrainingArguments) else MultirateConfig.two_rate()


class MultirateTrainer(MultirateMixin, Trainer):
    """`transformers.Trainer` with multirate training; takes all its arguments, and ``multirate``."""
