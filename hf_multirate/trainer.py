"""The Trainer of transformers with multirate training."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from transformers import Trainer, TrainingArguments

from hf_multirate.arguments import MultirateTrainingArguments
from hf_multirate.config import MultirateConfig
from hf_multirate.controlled import ControlledMixin
from hf_multirate.controller import Multirate


class MultirateMixin(ControlledMixin):
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

    _files = "multirate"

    def __init__(self, *args: Any, multirate: MultirateConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if multirate is None:
            multirate = _from_arguments(self.args)
        elif not isinstance(multirate, MultirateConfig):
            raise TypeError(f"multirate takes a MultirateConfig, got {multirate!r}.")
        self.multirate = Multirate(multirate)
        self._refuse_many_devices()
        self.multirate.assign(cast(nn.Module, self.model))
        self._control(self.multirate)

    def _refuse_many_devices(self) -> None:
        together = self.is_deepspeed_enabled or self.is_fsdp_enabled
        many = self.args.n_gpu > 1 or together or (self.multirate.prunes and self.args.world_size > 1)
        if self.multirate.active and many:
            raise NotImplementedError(
                f"multirate training runs on one device, got {self.args.world_size} processes with {self.args.n_gpu} "
                "devices each, or DeepSpeed or FSDP: gradients of idle parameters are not synchronised yet. Start one "
                "process (CUDA_VISIBLE_DEVICES=0), or train without it (--multirate off)."
            )


def _from_arguments(args: TrainingArguments) -> MultirateConfig:
    return args.to_multirate_config() if isinstance(args, MultirateTrainingArguments) else MultirateConfig.two_rate()


class MultirateTrainer(MultirateMixin, Trainer):
    """`transformers.Trainer` with multirate training; takes all its arguments, and ``multirate``."""
