"""How the gradients of the live parameters become the same in all processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch.distributed as dist
from torch import nn


class GradSync:
    """What a wrapper of the model needs at steps that leave some parameters without a gradient.

    At full steps the wrapper does all there is to do by itself. This class is for a model without one, in a single
    process: there is nothing to do.
    """

    group: dist.ProcessGroup | None = None
    """Processes that train this model together; None for one process."""

    averages: bool = False
    """Whether gradients of a fast-only step differ between processes until `average` was called."""

    records_first: bool = False
    """Whether the wrapper has to see one backward pass through all parameters before any that is cut short."""

    shards: bool = False
    """Whether a process holds a part of each parameter only."""

    def pruned(self, live: Sequence[nn.Parameter], *, last: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch in which only ``live`` get a gradient.

        Args:
            live: The parameters.
            last: Whether nothing is accumulated after it, as far as is known.
        """
        del live, last
        return nullcontext()

    def average(self, live: Sequence[nn.Parameter]) -> None:
        """Average the gradients of ``live``, once all micro-batches of a step have been accumulated."""
