"""`AveragedCopiesTrainer` and the mixin for other subclasses of `transformers.Trainer`."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from hf_multirate.averaged_copies.config import CopiesConfig
from hf_multirate.averaged_copies.controller import AveragedCopies
from hf_multirate.config.validation import wrong_type
from hf_multirate.trainer.arguments import MultirateTrainingArguments
from hf_multirate.trainer.lifecycle import TrainerLifecycleMixin


class AveragedCopiesMixin(TrainerLifecycleMixin):
    """Averaged copies for any subclass of `transformers.Trainer`: ``class Mine(AveragedCopiesMixin, TheirTrainer)``.

    Every optimizer step is a step of one copy, so ``max_steps`` counts the steps of all copies together. The evaluated
    and saved model is the fastest copy. At multiples of ``copies.config.cycle`` steps, it is the average.

    Args:
        *args: Arguments of the other class.
        copies: Settings of the copies.
        **kwargs: Keyword arguments of the other class.

    Raises:
        TypeError: ``copies`` is not a `CopiesConfig`.
        ValueError: the training arguments have settings of rate groups.
        NotImplementedError: the run is sharded (DeepSpeed, FSDP) or uses DataParallel.
    """

    _files = "averaged_copies"

    def __init__(self, *args: Any, copies: CopiesConfig, **kwargs: Any) -> None:
        if not isinstance(copies, CopiesConfig):
            wrong_type("copies", "a CopiesConfig", copies)
        self.copies = AveragedCopies(copies)
        self._control(self.copies)
        super().__init__(*args, **kwargs)
        if isinstance(self.args, MultirateTrainingArguments):
            self.args.require_no_groups("averaged copies, which have no rate groups")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.n_gpu > 1:
            raise NotImplementedError(
                "averaged copies need unsharded parameters and one device per process, got "
                f"{self.args.n_gpu} devices, DeepSpeed or FSDP. Use one process per device, without sharding."
            )


class AveragedCopiesTrainer(AveragedCopiesMixin, Trainer):
    """`transformers.Trainer` with averaged copies: see `AveragedCopiesMixin` for the additional argument."""
