"""`MultirateTrainer` and the mixin for other subclasses of `transformers.Trainer`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import nn
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.validation import wrong_type
from hf_multirate.controller.multirate import Multirate
from hf_multirate.controller.step_timer import StepTimer
from hf_multirate.distributed.unsupported import check_activation_cache, check_supported
from hf_multirate.model.partition import FrozenError
from hf_multirate.model.unwrap import ddp_wrappers
from hf_multirate.optim.parameter_groups import divide_parameter_groups
from hf_multirate.trainer.argument_fields import require_log
from hf_multirate.trainer.arguments import MultirateTrainingArguments, switched_off
from hf_multirate.trainer.never import FrozenGroupsMixin
from hf_multirate.trainer.timed_training import TimedTrainingMixin, given_arguments


logger = logging.getLogger(__name__)

CACHE_FOLDER = "_activation_cache"
"""Folder in ``output_dir`` with an activation cache on disk. Trainer uploads no file with a _ at its start."""


MANY_STEPS = 10**6
"""Number of steps of a run for checks before its number of steps is known."""


class MultirateMixin(TimedTrainingMixin, FrozenGroupsMixin):
    """Multirate training for any subclass of `transformers.Trainer`: ``class Mine(MultirateMixin, TheirTrainer)``.

    Args:
        *args: Arguments of the other class.
        multirate: The configuration. By default the one of `MultirateTrainingArguments`, if ``args`` is of that class,
            else ``MultirateConfig()``.
        multirate_record: Whether to write a record of the run for ``hf-multirate report``. By default the setting of
            `MultirateTrainingArguments`, else yes, except for standard training.
        multirate_log: ``"brief"`` to log a few values with each loss, ``"all"`` to log all values. By default the
            setting of `MultirateTrainingArguments`, else ``"brief"``.
        **kwargs: Keyword arguments of the other class.

    Raises:
        ValueError: ``multirate_log`` is unknown, the rate groups do not fit the model, or both ``multirate`` and the
            arguments have a configuration. Errors because of frozen parameters are raised when training begins, so
            that a frozen model can be evaluated.
        NotImplementedError: the distributed set-up is unsupported or untested.
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
        self._configured_by_arguments, self._switched_off = multirate is None, switched_off()
        if multirate is not None and not isinstance(multirate, MultirateConfig):
            wrong_type("multirate", "a MultirateConfig, as MultirateConfig.from_dict() makes one", multirate)
        # Created before super().__init__, which may evaluate or create an optimizer, and which needs the time to train
        # for. It may replace the arguments, so these are read again.
        self.multirate = Multirate(self._switched(multirate or _from_arguments(given_arguments(args, kwargs))))
        self._control(self.multirate)
        super().__init__(*args, **kwargs)
        if multirate is not None and isinstance(self.args, MultirateTrainingArguments):
            self.args.require_no_configuration()
        self._read_arguments()
        try:
            self.multirate.assign(cast(nn.Module, self.model))
        except FrozenError as error:
            # The model may be only evaluated, or unfrozen before training. Training repeats this check.
            logger.info("the rate groups will be determined when training begins: %s", error)
        if multirate_record is None and isinstance(self.args, MultirateTrainingArguments):
            multirate_record = self.args.multirate_record
        self._start_logging(multirate_record)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """See `transformers.Trainer`. Reads the arguments again, because a hyperparameter search may change them."""
        if self._training:
            self._read_arguments()
        return super().create_optimizer(*args, **kwargs)

    def _optimizer_created(self, optimizer: torch.optim.Optimizer) -> None:
        divide_parameter_groups(optimizer, cast(nn.Module, self.model), self.multirate.config)

    def _attach_controller(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        # Trainer of transformers 4.57 creates the optimizer before it knows the number of steps.
        return self.multirate.attach(model, optimizer, self.state.max_steps or MANY_STEPS)

    def _attach(self) -> None:
        super()._attach()
        if self.state.global_step == 0 and self._train_time is None:  # a timed run has no number of steps yet
            self._advise_on_length(self.state.max_steps)

    def _read_arguments(self) -> None:
        if self._configured_by_arguments:
            self.multirate.config = self._switched(_from_arguments(self.args))
        self._check_head_start()
        if self.multirate.config.has_activation_cache:
            check_activation_cache(cast(Trainer, self))
            self.multirate.cache_folder = os.path.join(cast(str, self.args.output_dir), CACHE_FOLDER)
        if not self.multirate.config.is_standard_training:
            check_supported(cast(Trainer, self), self.multirate.config)

    def _switched(self, config: MultirateConfig) -> MultirateConfig:
        """``config``, or standard training with its head start if the environment switches rate groups off."""
        return config.without_groups() if self._switched_off else config

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See `transformers.Trainer`. At fast steps, backward stops above the idle groups."""
        with _skipping_backward(self.accelerator, lambda: self._training and not self.multirate.is_full_step):
            return super().training_step(model, *args, **kwargs)

    def _before_step(self) -> None:
        # Gradients are not averaged yet if training_step skipped the last micro-batch of the step.
        self.multirate.synchronize()
        if self._run_metrics is not None:
            self._run_metrics.add_rates()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate as in `transformers.Trainer`, multiplied by the relative cost of the step."""
        operations = super().floating_point_ops(inputs)
        return int(operations * self.multirate.relative_cost) if self._training else operations

    def _optimizer_replaced(self) -> None:
        """Attach to the new optimizer and continue the count of steps."""
        if self.multirate.skips_backward:
            logger.warning(
                "the optimizer was replaced before step %d. Idle groups drift again after their next gradient.",
                self.state.global_step,
            )
        timing, attached = self.multirate.timing, self.multirate.attached
        # Displacements are dropped: they are relative to the learning rate of the optimizer that made the step.
        state = self.multirate.state_dict() | {"displacement": {}} if attached else None
        self._first_step += self.multirate.applied_steps
        self.multirate.timing = StepTimer()  # detach() stops its clock, and that of the run continues
        self.multirate.detach()
        self._attach_controller(self._model_to_control(), cast(torch.optim.Optimizer, self.optimizer))
        if state is not None:
            self.multirate.load_state_dict(state)
        self.multirate.timing = timing
        if self._run_metrics is not None:  # the model may have new adapters
            self._run_metrics.read_blocks(cast(nn.Module, self.model))

    def _model_to_control(self) -> nn.Module:
        """The model with its wrapper, which determines the synchronisation of gradients."""
        model: nn.Module = self.model_wrapped
        wrapped = bool(ddp_wrappers(model))
        fsdp_requested = bool(self.args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self.multirate.changes_training and fsdp_requested and wrapped:
            logger.warning(
                "FSDP was requested, but Accelerate has wrapped the model in DistributedDataParallel, because it "
                "shards on accelerators only. Training continues with unsharded parameters in every process."
            )
        if self.multirate.skips_backward and self.args.world_size > 1 and not (wrapped or self.is_fsdp_enabled):
            raise NotImplementedError(
                f"the model of {self.args.world_size} processes is wrapped neither by DistributedDataParallel nor by "
                f"FSDP2, got {type(model).__name__}, so it is unknown how its gradients are synchronised. Use one of "
                "the two wrappers."
            )
        return model


@contextmanager
def _skipping_backward(accelerator: Accelerator, at_fast_step: Callable[[], bool]) -> Iterator[None]:
    """A context in which ``accelerator.backward`` does nothing for a loss without gradient at a fast step.

    A batch may not use the fast groups, e.g. a batch of only text if they process images. At a fast step its loss then
    requires no gradient, and ``backward`` would raise an error.
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


def _from_arguments(args: TrainingArguments | None) -> MultirateConfig:
    return args.to_multirate_config() if isinstance(args, MultirateTrainingArguments) else MultirateConfig()


class MultirateTrainer(MultirateMixin, Trainer):
    """`transformers.Trainer` with multirate training: see `MultirateMixin` for the additional arguments."""


class MultirateSeq2SeqTrainer(MultirateMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with multirate training: see `MultirateMixin` for the additional arguments."""
