"""FSDP2 (``fully_shard``): gradients that are not there are not reduced, so what is idle costs no communication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_multirate.distributed.grad_sync import GradSync


class FSDP2Sync(GradSync):
    """See `hf_multirate.distributed.grad_sync.GradSync`.

    Rate groups need not match the units that are sharded together.

    Args:
        model: A model that `torch.distributed.fsdp.fully_shard` was applied to, itself or modules inside.
    """

    # A unit without a trainable parameter at the first forward pass would reduce in the wrong dtype ever after.
    records_first = shards = True

    def __init__(self, model: nn.Module) -> None:
        self._units = list(_units(model))
        self.group = dist.group.WORLD

    @contextmanager
    def pruned(self, live: Sequence[nn.Parameter], *, last: bool) -> Iterator[None]:
        """See `hf_multirate.distributed.grad_sync.GradSync`.

        A unit takes over ``requires_grad`` of its shards when it gathers them, so those that were kept whole since an
        evaluation let go first. The deepest live unit gathers nothing ahead: below it backward does not come. (A list
        of its own, `FSDPModule.set_modules_to_backward_prefetch`, is not kept.)
        """
        del last
        for unit, _ in self._units:
            unit.reshard()
        deepest = next((unit for unit, own in self._units if not own.isdisjoint(live)), None)
        if deepest is not None:
            deepest.set_modules_to_backward_prefetch([deepest])
        try:
            yield
        finally:
            if deepest is not None:
                deepest.set_modules_to_backward_prefetch([])


def _units(module: nn.Module) -> Iterator[tuple[FSDPModule, set[nn.Parameter]]]:
    """Units and the parameters that are their own, in the order in which a sequential model ends their forward."""
    inner: set[nn.Parameter] = set()
    for child in module.children():
        for unit, own in _units(child):
            inner |= own
            yield unit, own
    if isinstance(module, FSDPModule):
        yield module, set(module.parameters()) - inner
