"""FSDP2 (``fully_shard``): missing gradients are not reduced, so idle parameters need no communication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_multirate.distributed.grad_sync import GradSync


class FSDP2Sync(GradSync):
    """Gradient synchronisation for FSDP2: see `hf_multirate.distributed.grad_sync.GradSync`.

    Rate groups need not match the units of ``fully_shard``.

    Args:
        model: A model with ``torch.distributed.fsdp.fully_shard`` applied to it or to modules inside.
    """

    # A unit without a trainable parameter at its first forward pass would reduce in the wrong dtype from then on.
    records_first = shards = True

    def __init__(self, model: nn.Module) -> None:
        self._units = list(_units(model))
        self.group = dist.group.WORLD

    @contextmanager
    def partial_backward(self, live: Sequence[nn.Parameter], *, last: bool) -> Iterator[None]:
        """See `hf_multirate.distributed.grad_sync.GradSync`.

        A unit reads ``requires_grad`` of its shards when it gathers them. Units that are still gathered after an
        evaluation are therefore resharded first. The deepest live unit prefetches nothing, because backward stops
        there. A list set with ``FSDPModule.set_modules_to_backward_prefetch`` is overwritten.
        """
        del last
        for unit, _ in self._units:
            unit.reshard()
        deepest = next((unit for unit, parameters in self._units if not parameters.isdisjoint(live)), None)
        if deepest is not None:
            deepest.set_modules_to_backward_prefetch([deepest])
        try:
            yield
        finally:
            if deepest is not None:
                deepest.set_modules_to_backward_prefetch([])


def _units(module: nn.Module) -> Iterator[tuple[FSDPModule, set[nn.Parameter]]]:
    """FSDP units with their direct parameters, in the order in which a sequential model finishes their forward."""
    inner: set[nn.Parameter] = set()
    for child in module.children():
        for unit, parameters in _units(child):
            inner |= parameters
            yield unit, parameters
    if isinstance(module, FSDPModule):
        yield module, set(module.parameters()) - inner
