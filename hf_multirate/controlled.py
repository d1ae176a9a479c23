"""A Trainer whose steps a controller has a say in: the loop is Trainer's own, a few methods call ``super()``."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from transformers import Trainer

from hf_multirate.saved import Saved, StaleError, read_saved, write_saved


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class Controller(Protocol):
    """What takes over a model and an optimizer for the time of a training run."""

    config: Any
    applied: int

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Take over."""

    def detach(self) -> None:
        """Let go."""

    @property
    def attached(self) -> bool:
        """Whether it has taken over."""

    @property
    def active(self) -> bool:
        """Whether it changes training at all."""

    @property
    def phase(self) -> int:
        """Position in the cycle."""

    def select(self, step: int) -> None:
        """Begin optimizer step ``step``."""

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch, the ``last`` one of a step or not."""

    def state_dict(self) -> Any:
        """What a checkpoint needs besides model and optimizer."""

    def load_state_dict(self, state: Any) -> None:
        """Take over a `state_dict`."""


class ControlledMixin(_Base):
    """Gives a controller its place in the life of a `transformers.Trainer`.

    A subclass calls `_control` at the end of its ``__init__``.
    """

    _files = "controller"
    """Stem of the two files in a checkpoint, and of the entry in the logs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases of which `transformers.Trainer` comes first: it would train plainly and say nothing."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(ControlledMixin):
            theirs = next(base for base in order if base is Trainer or base in cls.__bases__)
            ours = next(base for base in cls.__bases__ if issubclass(base, ControlledMixin))
            raise TypeError(
                f"class {cls.__name__} names {theirs.__name__} before {ours.__name__}, so that its methods would come "
                f"first and train plainly. Write class {cls.__name__}({ours.__name__}, {theirs.__name__})."
            )

    def _control(self, controller: Controller) -> None:
        self._controller = controller
        self._training = False
        self._started: int | None = None
        self._begun = self._first_step = 0
        self._resumed: Saved | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; model and optimizer are let go of at the end, also after an error."""
        self._controller.detach()
        self._training, self._resumed, self._started = True, None, None
        try:
            output = super().train(*args, **kwargs)
            self._require_own_steps()
            return output
        finally:
            self._controller.detach()
            self._training = False

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`; refuses an optimizer that does not fit before the first step."""
        self._controller.detach()
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._training:
            with self._controller.attach(cast(nn.Module, self.model), optimizer):
                pass
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`, which asks for batches once a step."""
        if self._training:
            self._require_own_steps()
            self._started = self.state.global_step if self._started is None else self._started
        return super().get_batch_samples(*args, **kwargs)

    def _require_own_steps(self) -> None:
        """Raise `RuntimeError` if a step was taken and `training_step` never called."""
        stepped = self._started is not None and self.state.global_step > self._started
        if stepped and self._controller.active and not self._controller.attached:
            theirs = next(kind for kind in type(self).__mro__ if "training_step" in vars(kind))
            raise RuntimeError(
                f"{theirs.__name__}.training_step takes the place of the one that this package needs, so it trains "
                "plainly. Call super().training_step(model, inputs, num_items_in_batch) in it, and change the loss in "
                "compute_loss."
            )

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, as the controller has it at this step."""
        if not self._training:
            return super().training_step(model, *args, **kwargs)
        if not self._controller.attached:
            self._attach()
        if self.state.global_step != self._begun:
            self._begun = self.state.global_step
            self._controller.select(self._first_step + self._controller.applied)
        with self._controller.micro_batch(last=self.accelerator.sync_gradients):
            return self._forward_and_backward(model, *args, **kwargs)

    def _forward_and_backward(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().training_step(model, *args, **kwargs)

    def _attach(self) -> None:
        """Attach at the first micro-batch: only then optimizer, restored state and step are all there."""
        self._controller.attach(self._model_to_control(), cast(torch.optim.Optimizer, self.optimizer))
        skipped = 0
        if self._resumed is not None:
            self._resumed.hand_over(self._controller)
            skipped = self._resumed.skipped_steps
        # A step that a gradient scaler skips counts for Trainer, and not for the schedule of the groups.
        self._first_step = self.state.global_step - skipped
        self._begun = -1

    def _model_to_control(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with the phase that ``loss`` and ``grad_norm`` of the last step belong to."""
        if self._training and self._controller.active and "loss" in logs:
            logs[f"{self._files}/phase"] = self._controller.phase
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self._controller.attached or not self._controller.active:
            return  # standard training leaves what Trainer does
        state = self._controller.state_dict()  # gathers shards, so all processes have a part in it
        if not self.args.should_save:
            return
        skipped = self.state.global_step - self._first_step - self._controller.applied
        config = self._controller.config.to_dict()
        write_saved(Path(output_dir, f"{self._files}.json"), self.state.global_step, skipped, config, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._controller.active:
            return
        self._resumed = self._read(Path(checkpoint, f"{self._files}.json"))
        config = self._controller.config.to_dict()
        if self._resumed is not None and self._resumed.config != config:
            logger.warning(
                "the configuration of checkpoint %s differs from the one given, which is used. In the checkpoint: %s",
                checkpoint, self._resumed.config,
            )  # fmt: skip

    def _read(self, path: Path) -> Saved | None:
        """The state of the controller in a checkpoint; None, with a warning, if there is none that belongs to it."""
        try:
            saved = read_saved(path)
        except StaleError as error:
            logger.warning(
                "checkpoint %s has %s and %s of another run: %s. They are ignored. The cycle goes on at the phase of "
                "its step, and what those files hold (drift, copies) starts from scratch.",
                path.parent, path.name, path.with_suffix(".pt").name, error,
            )  # fmt: skip
            return None
        if saved is None:
            logger.warning(
                "checkpoint %s has no %s: it was written without multirate training, or with save_only_model=True. "
                "The cycle goes on at the phase of its step, and what that file holds (drift, copies) starts from "
                "scratch.", path.parent, path.name,
            )  # fmt: skip
        return saved
