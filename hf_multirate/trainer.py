"""The Trainers of transformers with multirate training."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Seq2SeqTrainer, Trainer, TrainingArguments

from hf_multirate.arguments import SWITCH, MultirateTrainingArguments, require_log
from hf_multirate.chunks import adds_up, scaled_backward
from hf_multirate.config import MultirateConfig
from hf_multirate.controller import Multirate
from hf_multirate.distributed.refusals import refuse_untested
from hf_multirate.observed import ObservedMixin


logger = logging.getLogger(__name__)

SWITCH_VARIABLE = "HF_MULTIRATE"
"""Environment variable that turns multirate training off if it is ``off``, for a run to compare with."""


class MultirateMixin(ObservedMixin):
    """Multirate training for any subclass of `transformers.Trainer`: ``class Mine(MultirateMixin, TheirTrainer)``.

    Args:
        *args: What the other class takes.
        multirate: The rate groups. Without it those of ``args``, if it is a `MultirateTrainingArguments`, else
            ``MultirateConfig.two_rate()``.
        multirate_log: ``"brief"`` for a few figures beside each logged loss, ``"all"`` for all of them. Without it
            that of ``args``, if it is a `MultirateTrainingArguments`, else ``"brief"``.
        **kwargs: What the other class takes.

    Raises:
        ValueError: the rate groups do not fit the model, or ``multirate_log`` is something else.
        NotImplementedError: the run is distributed in a way that is not known to train right.
    """

    _files = "multirate"

    def __init__(
        self, *args: Any, multirate: MultirateConfig | None = None, multirate_log: str | None = None, **kwargs: Any
    ) -> None:
        if multirate_log is not None:
            require_log(multirate_log)
        super().__init__(*args, **kwargs)
        self.multirate_log = multirate_log
        self._configured_by_arguments = multirate is None
        self._loss_adds_up: bool | None = None
        if _switched_off():
            multirate, self._configured_by_arguments = MultirateConfig.off(), False
        elif multirate is None:
            multirate = _from_arguments(self.args)
        elif not isinstance(multirate, MultirateConfig):
            raise TypeError(f"multirate takes a MultirateConfig, got {multirate!r}.")
        self.multirate = Multirate(multirate)
        if self.multirate.active:
            refuse_untested(cast(Trainer, self), multirate)
        self.multirate.assign(cast(nn.Module, self.model))
        self._control(self.multirate)
        self._observe()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in `transformers.Trainer`; takes over arguments that a hyperparameter search has changed since."""
        if self._configured_by_arguments:
            self.multirate.config = _from_arguments(self.args)
            if self.multirate.active:
                refuse_untested(cast(Trainer, self), self.multirate.config)
        return super().create_optimizer(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As in `transformers.Trainer`, less the backward that a step leaves out: an estimate, as theirs is."""
        operations = super().floating_point_ops(inputs)
        return int(operations * self.multirate.relative_cost) if self._training else operations

    def _forward_and_backward(self, model: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A batch in the parts that the step asks for, which come to the same as the whole."""
        inputs, *others = args
        parts = self.multirate.split(inputs)
        if len(parts) == 1:
            return super()._forward_and_backward(model, *args, **kwargs)
        if self._loss_adds_up is None:
            items = others[0] if others else kwargs.get("num_items_in_batch")
            self._loss_adds_up = adds_up(cast(Trainer, self), model, parts[0][0], items)
        losses: list[torch.Tensor] = []
        for part, share in parts:
            scale = float(share > 0) if self._loss_adds_up else share
            last = len(losses) == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(model), scaled_backward(self.accelerator, scale):
                losses.append(super()._forward_and_backward(model, part, *others, **kwargs) * scale)
        return torch.stack(losses).sum()

    def _model_to_control(self) -> nn.Module:
        """The model with its wrapper, which decides how gradients are synchronised."""
        model: nn.Module = self.model_wrapped
        wrapped = any(isinstance(module, DistributedDataParallel) for module in model.modules())
        asked_for = bool(self.args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")
        if self.multirate.active and asked_for and wrapped:
            logger.warning(
                "FSDP was asked for, but Accelerate has wrapped the model in DistributedDataParallel: it shards on "
                "accelerators only. Training goes on with whole parameters in every process."
            )
        if self.multirate.prunes and self.args.world_size > 1 and not (wrapped or self.is_fsdp_enabled):
            raise NotImplementedError(
                f"the model of {self.args.world_size} processes is wrapped neither by DistributedDataParallel nor by "
                f"FSDP2 but is {type(model).__name__}: how its gradients are synchronised is not known."
            )
        return model


def _switched_off() -> bool:
    value = os.environ.get(SWITCH_VARIABLE, "on")
    if value not in SWITCH:
        raise ValueError(f"the environment variable {SWITCH_VARIABLE} must be one of {SWITCH}, got {value!r}.")
    if value == "off":
        logger.warning("%s=off: training is plain, whatever rate groups were given.", SWITCH_VARIABLE)
    return value == "off"


def _from_arguments(args: TrainingArguments) -> MultirateConfig:
    return args.to_multirate_config() if isinstance(args, MultirateTrainingArguments) else MultirateConfig.two_rate()


class MultirateTrainer(MultirateMixin, Trainer):
    """`transformers.Trainer` with multirate training; takes all its arguments, and ``multirate``."""


class MultirateSeq2SeqTrainer(MultirateMixin, Seq2SeqTrainer):
    """`transformers.Seq2SeqTrainer` with multirate training; takes all its arguments, and ``multirate``."""
