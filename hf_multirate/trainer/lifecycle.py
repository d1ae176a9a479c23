"""A Trainer whose steps a controller has a say in: the loop is Trainer's own, a few methods call ``super()``."""

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
from hf_multirate.trainer.checkpoint_files import Saved, StaleError, read_saved, require_whole, write_saved
from hf_multirate.trainer.replaced_methods import is_ours, other_optimizer, takeover


logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class StepController(Protocol):
    """What takes over a model and an optimizer for the time of a training run."""

    config: Any
    applied_steps: int

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Take over."""

    def detach(self) -> None:
        """Let go."""

    @property
    def attached(self) -> bool:
        """Whether it has taken over."""

    @property
    def changes_training(self) -> bool:
        """Whether it changes training at all."""

    @property
    def phase(self) -> int:
        """Position in the cycle."""

    @property
    def begun(self) -> bool:
        """Whether a step was begun, and the optimizer has not taken it yet."""

    def controls(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it has taken over ``optimizer``."""

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""

    def set_step(self, step: int) -> None:
        """Begin optimizer step ``step``."""

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch, the ``last`` one of a step or not."""

    def state_dict(self) -> Any:
        """What a checkpoint needs besides model and optimizer."""

    def load_state_dict(self, state: Any) -> None:
        """Take over a `state_dict`."""


class TrainerLifecycleMixin(_Base):
    """Gives a controller its place in the life of a `transformers.Trainer`.

    A subclass calls `_control` at the beginning of its ``__init__``: the one behind it may create an optimizer, or
    evaluate. Which rate groups there are is settled when training begins.
    """

    _files = "controller"
    """Stem of the two files in a checkpoint, and of the entry in the logs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases of which `transformers.Trainer` comes first: it would train plainly and say nothing."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(TrainerLifecycleMixin):
            theirs = next(base for base in order if base is Trainer or base in cls.__bases__)
            ours = next(base for base in cls.__bases__ if issubclass(base, TrainerLifecycleMixin))
            raise TypeError(
                f"class {cls.__name__} names {theirs.__name__} before {ours.__name__}, so that its methods would come "
                f"first and train plainly. Write class {cls.__name__}({ours.__name__}, {theirs.__name__})."
            )
        owner = next((base for base in order if "train" in vars(base)), cls)
        if not is_ours(owner) and (owner is cls or not issubclass(owner, TrainerLifecycleMixin)):
            cls.train = _watched(cls.train)  # type: ignore[method-assign]

    def _control(self, controller: StepController) -> None:
        self._controller = controller
        self._training = False
        self._looped = self._resumes = self._stepped = False
        self._given_up: set[int] = set()
        self._begun = self._first_step = 0
        self._resumed: Saved | None = None
        self._attached_in: TrainerState | None = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`; model and optimizer are let go of at the end, also after an error."""
        self._controller.detach()
        self._training, self._resumed, self._given_up = True, None, set()
        checkpoint = kwargs.get("resume_from_checkpoint") or (args[0] if args else None)
        self._looped = self._stepped = False
        self._resumes = bool(checkpoint)
        self._require_whole(checkpoint)
        self._begun, self._attached_in = -1, None
        guard = register_optimizer_step_pre_hook(self._guard)
        try:
            output = super().train(*args, **kwargs)
            self._require_own_loop()
            return output
        finally:
            guard.remove()
            self._controller.detach()
            self._training = False
            if self._given_up:
                logger.warning(
                    "%d of the steps moved nothing and count for no rate group: training_step gave their batch up.",
                    len(self._given_up),
                )

    def _require_whole(self, checkpoint: Any) -> None:
        """Raise `ValueError` if ``checkpoint``, as `train` takes it, was written by a run that ended meanwhile."""
        if checkpoint is True and os.path.isdir(folder := cast(str, self.args.output_dir)):
            checkpoint = get_last_checkpoint(folder)  # type: ignore[no-untyped-call]
        if isinstance(checkpoint, (str, os.PathLike)) and self._controller.changes_training:
            require_whole(Path(checkpoint))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`; refuses an optimizer that does not fit before the first step."""
        underway = self._attached_in is self.state and self._training
        if not underway:
            self._controller.detach()
        # An override may set the attribute and return nothing, which is all that Trainer asks for.
        optimizer = super().create_optimizer(*args, **kwargs) or cast(torch.optim.Optimizer, self.optimizer)
        if self._training and not underway:  # otherwise the next step takes it over
            with self._controller.attach(cast(nn.Module, self.model), optimizer):
                pass
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`, which asks for batches once a step."""
        self._looped = True
        return super().get_batch_samples(*args, **kwargs)

    def _guard(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Before any optimizer steps: raise `RuntimeError` if gradients of the model are none of our steps.

        A step without gradients is that of a batch that `training_step` gave up, and moves nothing.
        """
        del args, kwargs
        if is_attached(optimizer):
            self._stepped = True
            if self._controller.begun:
                self._before_step()
            if self._controller.begun or not self._controller.attached:
                return
        if self._controller.stepping:  # an optimizer that holds others
            return
        # FSDP2 steps with gradients of zero to make the state that a checkpoint is loaded into.
        if not self._controller.changes_training or (self.is_fsdp_enabled and not self._looped):
            return
        own = {id(parameter) for parameter in cast(nn.Module, self.model).parameters()}
        stepped = [p for group in optimizer.param_groups for p in group["params"] if id(p) in own]
        if any(parameter.grad is not None for parameter in stepped):
            if self._controller.begun:
                raise RuntimeError(other_optimizer(optimizer))
            raise RuntimeError(takeover(cast(Trainer, self), standard_loop=self._looped))
        if stepped and self._training and self.state.global_step != self._begun:
            self._given_up.add(self.state.global_step)

    @contextmanager
    def _watch_outside(self) -> Iterator[None]:
        """A context for a ``train`` in front of this class, which may take steps without ``super().train()``."""

        def guard(*args: Any) -> None:
            if not self._training:
                self._guard(*args)

        handle = register_optimizer_step_pre_hook(guard)
        try:
            yield
        finally:
            handle.remove()

    def _before_step(self) -> None:
        """The optimizer is about to take a step that was begun."""

    def _require_own_loop(self) -> None:
        """Raise `RuntimeError` if steps were taken without the loop of Trainer and without `training_step`."""
        ours = self._looped or self._resumes or self._stepped or self._begun >= 0
        if not ours and self.state.global_step > 0 and self._controller.changes_training:
            raise RuntimeError(takeover(cast(Trainer, self), standard_loop=False))

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, as the controller has it at this step."""
        if not self._training:
            return super().training_step(model, *args, **kwargs)
        if self._attached_in is not self.state:  # a retry with smaller batches has a state of its own
            self._controller.detach()
            self._attach()
            self._attached_in = self.state
        if self.state.global_step != self._begun:
            if not self._controller.controls(cast(torch.optim.Optimizer, self.optimizer)):
                self._exchange()
            self._begun = self.state.global_step
            self._controller.set_step(self._first_step + self._controller.applied_steps)
        with self._controller.micro_batch(last=self.accelerator.sync_gradients):
            return super().training_step(model, *args, **kwargs)

    def _attach(self) -> None:
        """Attach at the first micro-batch: only then optimizer, restored state and step are all there."""
        if self.optimizer is None:
            raise RuntimeError(other_optimizer(None))
        self._controller.attach(self._model_to_control(), self.optimizer)
        skipped = 0
        if self._resumed is not None:
            self._resumed.hand_over(self._controller)
            skipped = self._resumed.skipped_steps
        # A step that a gradient scaler skips, or whose batch was given up, counts for Trainer and not for the groups.
        self._first_step = self.state.global_step - skipped - len(self._given_up)
        self._begun = -1

    def _exchange(self) -> None:
        """Another optimizer has taken the place of the one that was attached."""
        raise RuntimeError(
            f"the optimizer was replaced in training, before step {self.state.global_step}, and what was kept of it "
            "cannot go on with another one: train in two runs."
        )

    def _model_to_control(self) -> nn.Module:
        return cast(nn.Module, self.model)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, with the phase that ``loss`` and ``grad_norm`` of the last step belong to."""
        if self._training:
            self._require_own_loop()
        if self._training and self._controller.changes_training and "loss" in logs:
            logs[f"{self._files}/phase"] = self._controller.phase
        super().log(logs, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self._controller.attached or not self._controller.changes_training:
            return  # standard training leaves what Trainer does
        state = self._controller.state_dict()  # gathers shards, so all processes have a part in it
        if not self.args.should_save:
            return
        skipped = self.state.global_step - self._first_step - self._controller.applied_steps
        config = self._controller.config.to_dict()
        write_saved(Path(output_dir, f"{self._files}.json"), self.state.global_step, skipped, config, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self._controller.changes_training:
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


def _watched(train: Callable[..., Any]) -> Callable[..., Any]:
    """The ``train`` of a subclass, in which no step of an optimizer goes by unseen."""

    @functools.wraps(train)
    def watched(self: TrainerLifecycleMixin, *args: Any, **kwargs: Any) -> Any:
        with self._watch_outside():
            return train(self, *args, **kwargs)

    return watched
