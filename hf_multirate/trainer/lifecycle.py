"""Connect a controller to `transformers.Trainer`: the loop of Trainer is unchanged, a few methods are extended."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import Trainer, TrainerState

from hf_multirate.controller.guards import is_attached
from hf_multirate.trainer.controller_checkpoints import ControllerCheckpointsMixin
from hf_multirate.trainer.replaced_methods import bypass_message, is_package_class, other_optimizer_message
from hf_multirate.trainer.step_controller import StepController


logger = logging.getLogger(__name__)


class TrainerLifecycleMixin(ControllerCheckpointsMixin):
    """Attaches a controller during the training of a `transformers.Trainer`, and saves it in checkpoints.

    A subclass calls `_control` at the start of its ``__init__``, because ``super().__init__`` may create an optimizer
    or evaluate. The rate groups are determined when training begins.
    """

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
        self._saved_state = None
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


def _with_step_check(train: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the ``train`` of a subclass, so that its optimizer steps are checked."""

    @functools.wraps(train)
    def checked(self: TrainerLifecycleMixin, *args: Any, **kwargs: Any) -> Any:
        with self._check_steps_outside():
            return train(self, *args, **kwargs)

    return checked
