"""The Trainer of transformers with averaged copies on different time scales."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from hf_multirate.averaged_copies.config import CopiesConfig
from hf_multirate.averaged_copies.controller import AveragedCopies
from hf_multirate.config.validation import wrong_type
from hf_multirate.trainer.lifecycle import TrainerLifecycleMixin


class AveragedCopiesMixin(TrainerLifecycleMixin):
    """Averaged copies for any subclass of `transformers.Trainer`: ``class Mine(AveragedCopiesMixin, TheirTrainer)``.

    Every optimizer step is that of one copy, so ``max_steps`` counts the steps of all copies together. The model that
    is evaluated and saved is the fastest copy: the average, if the step is a multiple of ``copies.config.cycle``.

    Args:
        *args: What the other class takes.
        copies: Step sizes of the copies, and what an average takes in.
        **kwargs: What the other class takes.

    Raises:
        TypeError: ``copies`` is no `CopiesConfig`.
        NotImplementedError: the run is sharded (DeepSpeed, FSDP) or replicated within a process.
    """

    _files = "averaged_copies"

    def __init__(self, *args: Any, copies: CopiesConfig, **kwargs: Any) -> None:
        if not isinstance(copies, CopiesConfig):
            wrong_type("copies", "a CopiesConfig", copies)
        self.copies = AveragedCopies(copies)
        self._control(self.copies)
        super().__init__(*args, **kwargs)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            raise NotImplementedError(
                f"averaged copies need whole parameters, one device per process, got {self.args.n_gpu} devices, or "
                "DeepSpeed or FSDP, which shard them. Use one process per device, without sharding."
            )


class AveragedCopiesTrainer(AveragedCopiesMixin, Trainer):
    """`transformers.Trainer` with averaged copies; takes all its arguments, and ``copies``."""
