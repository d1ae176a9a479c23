"""Groups with period ``"never"`` in `transformers.Trainer`: frozen before optimizer and wrapper are created."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from hf_multirate.model.unwrap import unwrap_model
from hf_multirate.trainer.head_start import HeadStartMixin


class FrozenGroupsMixin(HeadStartMixin):
    """Switches ``requires_grad`` off for groups that never get a gradient, during the training loop.

    The optimizer and DistributedDataParallel are created inside of the loop, so they leave these parameters out.
    """

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """See `transformers.Trainer`, which calls this once per attempt, after ``model_init``."""
        self._read_arguments()
        with self._never_frozen():
            return super()._inner_training_loop(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """See `transformers.Trainer`. Leaves out the groups that never get a gradient."""
        if self._training:
            return super().create_optimizer(*args, **kwargs)
        with self._never_frozen():
            return super().create_optimizer(*args, **kwargs)

    def _read_arguments(self) -> None:
        """Read the configuration from the arguments again, because a hyperparameter search may change them."""

    @contextmanager
    def _never_frozen(self) -> Iterator[None]:
        if not self.multirate.config.has_never:
            yield
            return
        self.multirate.freeze_never(unwrap_model(cast(nn.Module, self.model)))
        try:
            yield
        finally:
            self.multirate.detach()
            self.multirate.thaw_never()
