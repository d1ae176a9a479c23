"""Average gradients over processes in flat buckets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn


BUCKET_BYTES = 25 << 20
"""As in `torch.nn.parallel.DistributedDataParallel`."""


class _Bucket:
    """Gradients of one dtype and device side by side, and behind them for each whether this process has it."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, wire: torch.dtype | None) -> None:
        self._parameters = parameters
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor([p.grad is not None for p in parameters], device=pieces[0].device)
        flat = torch.cat([*(piece.reshape(-1) for piece in pieces), present.to(pieces[0].dtype)])
        # Divided first, as in DDP: a sum of many half-precision gradients could overflow.
        self._flat = flat.to(wire or flat.dtype).div_(group.size())
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    def finish(self) -> None:
        """Wait for the sum and hand it back; what no process has a gradient for stays without one."""
        assert self._work is not None  # asynchronous calls return their handle
        self._work.wait()
        sizes = [p.numel() for p in self._parameters]
        *averages, present = torch.split(self._flat, [*sizes, len(sizes)])
        for p, average, found in zip(self._parameters, averages, present.tolist(), strict=True):
            if p.grad is not None:
                p.grad.copy_(average.view_as(p))
            elif found:
                p.grad = average.view_as(p).to(p.dtype, copy=True)


@torch.no_grad()
def average_(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, wire: torch.dtype | None = None) -> None:
    """Replace the gradient of each of ``parameters`` by its mean over the processes of ``group``.

    A process without a gradient that others have counts as zero, as in DDP with ``find_unused_parameters``. All
    processes name the same parameters, in the same order.

    Args:
        parameters: Parameters, with or without a gradient of their own shape.
        group: Who takes part.
        wire: dtype in which gradients travel; None is their own.

    Raises:
        ValueError: a gradient is sparse.
    """
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"a live parameter of shape {tuple(p.shape)} has a sparse gradient, which is not averaged over "
                "processes at fast-only steps: build its embedding with sparse=False, or put it into a slow group."
            )
    buckets = [_Bucket(members, group, wire) for members in _split(parameters)]
    for bucket in buckets:
        bucket.finish()


def _split(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for p in parameters:
        kinds.setdefault((p.device, p.dtype), []).append(p)
    for members in kinds.values():
        bucket: list[nn.Parameter] = []
        filled = 0
        for p in members:
            size = p.numel() * p.element_size()
            if bucket and filled + size > BUCKET_BYTES:
                yield bucket
                bucket, filled = [], 0
            bucket.append(p)
            filled += size
        yield bucket
