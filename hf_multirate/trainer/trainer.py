"""The Trainers of transformers with multirate training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.validation import wrong_type
from hf_multirate.controller.multirate import Multirate
from hf_multirate.distributed.unsupported import check_supported
from hf_multirate.model.partition import FrozenError
from hf_multirate.trainer.arguments import MultirateTrainingArguments, require_log, switched_off
from hf_multirate.trainer.run_logging import RunLoggingMixin


logger = logging.getLogger(__name__)


class MultirateMixin(RunLoggingMixin):
    """Multirate training for any subclass of `transformers.Trainer`: ``class Mine(MultirateMixin, TheirTrainer)``.

    Args:
        *args: What the other class takes.
        multirate: The rate groups. Without it those of ``args``, if it is a `MultirateTrainingArguments`, else
            ``MultirateConfig()``.
        multirate_record: Whether a run leaves a record for ``hf-multirate report``. None is what ``args`` say, if it
            is a `MultirateTrainingArguments`, else yes for all but standard training.
        multirate_log: ``"brief"`` for a few figures beside each logged loss, ``"all"`` for all of them. Without it
            that of ``args``, if it is a `MultirateTrainingArguments`, else ``"brief"``.
        **kwargs: What the other class takes.

    Raises:
        ValueError: ``multirate_log`` is unknown, or the rate groups do not fit the model, however much of it is
            frozen. What depends on that is settled when training begins, so a frozen model can be evaluated.
        NotImplementedError: the run is distributed in a way that is not known to train right.
    """

    _files = "multirate"

    def __init__(
        self,
        *args: Any,
        multirate: MultirateConfig | None = None,
        multirate_record: bool | None = None,
        multirate_log: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.multirate_log = None if multirate_log is None else require_log(multirate_log)
        self._configured_by_arguments = multirate is None
        if switched_off():
            multirate, self._configured_by_arguments = MultirateConfig.off(), False
        elif multirate is not None and not isinstance(multirate, MultirateConfig):
            wrong_type("multirate", "a MultirateConfig, as MultirateConfig.from_dict() makes one", multirate)
        # The arguments are not there yet; a base class may evaluate in its constructor, or create an optimizer.
        self.multirate = Multirate(multirate or MultirateConfig())
        self._control(self.multirate)
        super().__init__(*args, **kwargs)
        self._take_over_arguments()
        try:
            self.multirate.assign(cast(nn.Module, self.model))
        except FrozenError as error:
            # It may be here to evaluate, or be thawed before it is trained: that is settled when training begins.
            logger.info("rate groups are not settled yet: %s", error)
        if multirate_record is None and isinstance(self.args, MultirateTrainingArguments):
            multirate_record = self.args.multirate_record
        self._observe(multirate_record)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`; takes over arguments that a hyperparameter search has changed since."""
        if self._training:
            self._take_over_arguments()
        return super().create_optimizer(*args, **kwargs)

    def _take_over_arguments(self) -> None:
        if self._configured_by_arguments:
            self.multirate.config = _from_arguments(self.args)
        if not self.multirate.config.is_standard_training:
            check_supported(cast(Trainer, self), self.multirate.config)

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in `transformers.Trainer`, with a backward pass that stops above idle groups."""
        with _skipping_backward(self.accelerator, lambda: self._training and not self.multirate.is_full_step):
            return super().training_step(model, *args, **kwargs)

    def _before_step(self) -> None:
        # Of a step whose last micro-batch was given up, gradients are not averaged yet.
        self.multirate.synchronize()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in `transformers.Trainer`, less the backward that a step leaves out: an estimate, as theirs is."""
        operations = super().floating_point_ops(inputs)
        return int(operations * self.multirate.relative_cost) if self._training else operations

    def _exchange(self) -> None:
        """Take over an optimizer that was put in the place of the one before, and go on with the count of steps."""
        if self.multirate.skips_backward:
            logger.warning(
                "the optimizer was replaced before step %d: idle groups drift again once they had a gradient.",
                self.state.global_step,
            )
        timing, attached = self.multirate.timing, self.multirate.attached
        # A displacement is one per unit of the learning rate of the optimizer that made it.
        state = self.multirate.state_dict() | {"displacement": {}} if attached else None
        self._first_step += self.multirate.applied_steps
        self.multirate.detach()
        self.multirate.attach(self._model_to_control(), cast(torch.optim.Optimizer, self.optimizer))
        if state is not None:
            self.multirate.load_state_dict(state)
        self.multirate.timing = timing

    def _model_to_control(self) -> nn.Module:
        """The model with its wrapper, which decides how gradients are synchronised."""
        model: nn.Module = self.model_wrapped
        wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        asked_for = bool(self.args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self.multirate.changes_training and asked_for and wrapped:
            logger.warning(
                "FSDP was asked for, but Accelerate has wrapped the model in DistributedDataParallel: it shards on "
                "accelerators only. Training goes on with whole parameters in every process."
            )
        if self.multirate.skips_backward and self.args.world_size > 1 and not (wrapped or self.is_fsdp_enabled):
            raise NotImplementedError(
                f"the model of {self.args.world_size} processes is wrapped neither by DistributedDataParallel nor by "
                f"FSDP2 but is {type(model).__name__}: how its gradients are synchronised is not known."
            )
        return model


@contextmanager
def _skipping_backward(accelerator: Accelerator, at_fast_step: Callable[[], bool]) -> Iterator[None]:
    """While open, ``accelerator.backward`` skips a loss that requires no gradient at a fast step.

    A batch may not use the fast part: one of text alone, where that is for images. In standard training the rest of
    the model would get its gradients. At a fast step there is nothing to do.
    """
    attributes, backward = vars(accelerator), accelerator.backward
    before = attributes.get("backward")

    def skip_or_run(loss: torch.Tensor, **kwargs: Any) -> None:
        if loss.requires_grad or not at_fast_step():
            backward(loss, **kwargs)

    attributes["backward"] = skip_or_run
    try:
        yield
    finally:
        if before is None:
            attributes.pop("backward", None)
        else:
            attributes["backward"] = before


def _from_arguments(args: TrainingArguments) -> MultirateConfig:
    return args.to_multirate_config() if isinstance(args, MultirateTrainingArguments) else MultirateConfig()


class MultirateTrainer(MultirateMixin, Trainer):
    """`transformers.Trainer` with multirate training; takes all its arguments, and ``multirate``."""


class MultirateSeq2SeqTrainer(MultirateMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with multirate training; takes all its arguments, and ``multirate``."""
