"""Interface for the synchronisation of live gradients between processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch.distributed as dist
from torch import nn


class GradSync:
    """Gradient synchronisation at fast steps; this class is for a model without wrapper and does nothing.

    At full steps the wrapper of the model synchronises the gradients itself.
    """

    group: dist.ProcessGroup | None = None
    """Processes that train the model together; None for one process."""

    averages: bool = False
    """Whether gradients of a fast step differ between processes until `average` is called."""

    records_first: bool = False
    """Whether the wrapper needs one backward pass through all parameters before the first partial one."""

    shards: bool = False
    """Whether each process holds only a shard of each parameter."""

    def partial_backward(self, live: Sequence[nn.Parameter], *, last: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch with a partial backward.

        Args:
            live: The parameters that get a gradient.
            last: Whether this is the last micro-batch of the step; False if that is unknown.
        """
        del live, last
        return nullcontext()

    def average(self, live: Sequence[nn.Parameter]) -> None:
        """Average the gradients of the ``live`` parameters after the last micro-batch of a step."""
