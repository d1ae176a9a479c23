"""Connect a controller to `transformers.Trainer`: the loop of Trainer is unchanged, a few methods are extended."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Trainer, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from hf_multirate.controller.guards import is_attached
from hf_multirate.trainer.checkpoint_files import SavedState, StaleError, read_saved, require_complete, write_saved
from hf_multirate.trainer.replaced_methods import bypass_message, is_package_class, other_optimizer_message


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class StepController(Protocol):
    """Interface of a controller that attaches to a model and an optimizer during a training run."""

    config: Any
    applied_steps: int

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Attach to ``model`` and ``optimizer``."""

    def detach(self) -> None:
        """Detach from both."""

    @property
    def attached(self) -> bool:
        """Whether it is attached."""

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training."""

    @property
    def phase(self) -> int:
        """Position of the present step in the cycle."""

    @property
    def begun(self) -> bool:
        """Whether a step has begun that the optimizer has not taken yet."""

    def controls(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is attached to ``optimizer``."""

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""

    def set_step(self, step: int) -> None:
        """Begin optimizer step ``step``."""

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch, with ``last`` for the last one of a step."""

    def state_dict(self) -> Any:
        """State for a checkpoint besides model and optimizer."""

    def load_state_dict(self, state: Any) -> None:
        """Load a `state_dict`."""


class TrainerLifecycleMixin(_Base):
    """Attaches a controller during the training of a `transformers.Trainer`, and saves it in checkpoints.

    A subclass calls `_control` at the start of its ``__init__``, because ``super().__init__`` may create an optimizer
    or evaluate. The rate groups are determined when training begins.
    """

    _files = "controller"
    """Stem of the two files in a checkpoint, and prefix of the log keys."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the order of bases: with `transformers.Trainer` first, the run would be standard training."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(TrainerLifecycleMixin):
            trainer = next(base for base in order if base is Trainer or base in cls.__bases__)
            mixin = next(base for base in cls.__bases__ if issubclass(base, TrainerLifecycleMixin))
            raise TypeError(
                f"class {cls.__name__} names {trainer.__name__} before {mixin.__name__}, so the run would be standard "
                f"training. Write class {cls.__name__}({mixin.__name__}, {trainer.__name__})."
            )
        owner = next((base for base in order if "train" in vars(base)), cls)
        if not is_package_class(owner) and (owner is cls or not issubclass(owner, TrainerLifecycleMixin)):
            cls.train = _with_step_check(cls.train)  # type: ignore[method-assign]

    def _control(self, controller: StepController) -> None:
        self._controller = controller
        self._training = False
        self._in_standard_loop = self._resumes = self._stepped = False
        self._skipped_batches: set[int] = set()
        self._begun_step = self._first_step = 0
        self._saved_state: SavedState | None = None
        self._attached_in: TrainerState | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`. The controller is detached at the end, also after an error.

        Raises:
            ValueError: the checkpoint is incomplete or does not fit.
            RuntimeError: code outside of this package trained the model.
        """
        self._controller.detach()
        self._training, self._saved_state, self._skipped_batches = True, None, set()
        checkpoint = kwargs.get("resume_from_checkpoint") or (args[0] if args else None)
        self._in_standard_loop = self._stepped = False
        self._resumes = bool(checkpoint)
        self._require_complete(checkpoint)
        self._begun_step, self._attached_in = -1, None
        guard = register_optimizer_step_pre_hook(self._guard)
        try:
            output = super().train(*args, **kwargs)
            self._require_controlled_loop()
            return output
        finally:
            guard.remove()
            self._controller.detach()
            self._training = False
            if self._skipped_batches:
                logger.warning(
                    "%d steps updated no parameter, because training_step skipped their batch. They do not count for "
                    "the rate groups.",
                    len(self._skipped_batches),
                )

    def _require_complete(self, checkpoint: Any) -> None:
        """Raise `ValueError` if a run ended while it wrote ``checkpoint``, which has a value as for `train`."""
        if checkpoint is True and os.path.isdir(folder := cast(str, self.args.output_dir)):
            checkpoint = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
        if isinstance(checkpoint, (str, os.PathLike)) and self._controller.changes_training:
            require_complete(Path(checkpoint))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """See `transformers.Trainer`. Before the first step, raises an error if the optimizer does not fit."""
        underway = self._attached_in is self.state and self._training
        if not underway:
            self._controller.detach()
        # An override may set trainer.optimizer and return None, as Trainer permits.
        created = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs) or cast(torch.optim.Optimizer, self.optimizer)
        if created:
            self._optimizer_created(optimizer)
        if self._training and not underway:  # during training, the next step attaches to it
            with self._attach_controller(cast(nn.Module, self.model), optimizer):
                pass
        return optimizer

    def _attach_controller(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Attach the controller; returns the controller."""
        return self._controller.attach(model, optimizer)

    def _optimizer_created(self, optimizer: torch.optim.Optimizer) -> None:
        """Called with a new optimizer, before a scheduler reads its learning rates."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`, whose loop calls this once per step."""
        self._in_standard_loop = True
        return super().get_batch_samples(*args, **kwargs)

    def _guard(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Raise `RuntimeError` if an optimizer steps with gradients of the model outside of `training_step`.

        Called before every step of any optimizer. In a step without gradients, `training_step` has skipped the batch.
        """
        del args, kwargs
        if is_attached(optimizer):
            self._stepped = True
            if self._controller.begun:
                self._before_step()
            if self._controller.begun or not self._controller.attached:
                return
        if self._controller.stepping:  # the attached optimizer calls an inner optimizer
            return
        # To load a checkpoint, FSDP2 first creates optimizer state by a step with zero gradients.
        if not self._controller.changes_training or (self.is_fsdp_enabled and not self._in_standard_loop):
            return
        model_parameters = {id(parameter) for parameter in cast(nn.Module, self.model).parameters()}
        stepped = [p for group in optimizer.param_groups for p in group["params"] if id(p) in model_parameters]
        if any(parameter.grad is not None for parameter in stepped):
            if self._controller.begun:
                raise RuntimeError(other_optimizer_message(optimizer))
            raise RuntimeError(bypass_message(cast(Trainer, self), standard_loop=self._in_standard_loop))
        if stepped and self._training and self.state.global_step != self._begun_step:
            self._skipped_batches.add(self.state.global_step)

    @contextmanager
    def _check_steps_outside(self) -> Iterator[None]:
        """A context that checks optimizer steps in the ``train`` of a subclass without ``super().train()``."""

        def guard(*args: Any) -> None:
            if not self._training:
                self._guard(*args)

        handle = register_optimizer_step_pre_hook(guard)
        try:
            yield
        finally:
            handle.remove()

    def _before_step(self) -> None:
        """Called before the optimizer takes a step that has begun."""

    def _require_controlled_loop(self) -> None:
        """Raise `RuntimeError` if steps were taken without the loop of Trainer and without `training_step`."""
        controlled = self._in_standard_loop or self._resumes or self._stepped or self._begun_step >= 0
        if not controlled and self.state.global_step > 0 and self._controller.changes_training:
            raise RuntimeError(bypass_message(cast(Trainer, self), standard_loop=False))

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `transformers.Trainer`. Runs within the micro-batch context of the controller."""
        if not self._training:
            return super().training_step(model, *args, **kwargs)
        if self._attached_in is not self.state:  # auto_find_batch_size creates a new state for each attempt
            self._controller.detach()
            self._attach()
            self._attached_in = self.state
        if self.state.global_step != self._begun_step:
            if not self._controller.controls(cast(torch.optim.Optimizer, self.optimizer)):
                self._optimizer_replaced()
            self._begun_step = self.state.global_step
            self._controller.set_step(self._first_step + self._controller.applied_steps)
        with self._controller.micro_batch(last=self.accelerator.sync_gradients):
            return super().training_step(model, *args, **kwargs)

    def _attach(self) -> None:
        """Attach at the first micro-batch, when the optimizer, the loaded state and the step are available."""
        if self.optimizer is None:
            raise RuntimeError(other_optimizer_message(None))
        self._attach_controller(self._model_to_control(), self.optimizer)
        skipped = 0
        if self._saved_state is not None:
            self._saved_state.load_into(self._controller)
            skipped = self._saved_state.skipped_steps
        # Trainer counts steps that a gradient scaler skips and steps without a gradient; the schedule does not.
        self._first_step = self.state.global_step - skipped - len(self._skipped_batches)
        self._begun_step = -1

    def _optimizer_replaced(self) -> None:
        """Called if another optimizer has replaced the attached one."""
        raise RuntimeError(
            f"the optimizer was replaced in training, before step {self.state.global_step}, but the saved optimizer "
            "states of the copies belong to the first one. Train in two runs."
        )

    def _model_to_control(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """See `transformers.Trainer`. Adds the phase of the last step to entries with a loss."""
        if self._training:
            self._require_controlled_loop()
        if self._training and self._controller.changes_training and "loss" in logs:
            logs[f"{self._files}/phase"] = self._controller.phase
        super().log(logs, *args, **kwargs)

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


def _with_step_check(train: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the ``train`` of a subclass, so that its optimizer steps are checked."""

    @functools.wraps(train)
    def checked(self: TrainerLifecycleMixin, *args: Any, **kwargs: Any) -> Any:
        with self._check_steps_outside():
            return train(self, *args, **kwargs)

    return checked
