"""Average gradients over processes in flat buckets, each as soon as backward has finished it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn


BUCKET_BYTES = 25 << 20
"""As in `torch.nn.parallel.DistributedDataParallel`."""


class GradientAllReduce:
    """The gradients of one step on their way to their mean over the processes of a group.

    A process without a gradient that others have counts as zero, as in DDP with ``find_unused_parameters``. All
    processes name the same parameters, in the same order.

    Args:
        parameters: Parameters, with or without a gradient of their own shape. Backward is expected to reach the last
            ones first.
        group: Who takes part.
        wire: dtype in which gradients travel; None is their own.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, wire: torch.dtype | None = None
    ) -> None:
        self._group, self._wire = group, wire
        self._buckets = list(_split(parameters[::-1]))
        self._place = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._waiting = [set(bucket) for bucket in self._buckets]
        self._sent: list[_BucketInFlight] = []
        self.counts: Counter[nn.Parameter] = Counter()
        """How often backward has reached each parameter that was watched."""

    @contextmanager
    def watching(self, *, sends: bool) -> Iterator[None]:
        """See which gradients backward finishes, and with ``sends`` start buckets in turn once they are complete.

        Then backward may reach each parameter once: what came later would be missing from the mean.
        """

        def reached(parameter: nn.Parameter) -> None:
            self.counts[parameter] += 1
            self._waiting[self._place[parameter]].discard(parameter)
            while sends and len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
                self._send()

        handles = [
            parameter.register_post_accumulate_grad_hook(reached)  # type: ignore[no-untyped-call]
            for parameter in self._place
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _send(self) -> None:
        self._sent.append(_BucketInFlight(self._buckets[len(self._sent)], self._group, self._wire))

    def finish(self) -> None:
        """Start what is left, wait for all of it, and replace gradients by their mean.

        Raises:
            ValueError: a gradient is sparse.
            RuntimeError: backward has reached a parameter again whose gradient was on its way.
        """
        if self._sent and any(count > 1 for count in self.counts.values()):
            raise RuntimeError(
                "backward reached a parameter twice in one step, which it did not in the first steps: part of its "
                "gradient is not in the mean over processes. DistributedDataParallel does not allow that either."
            )
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket in self._sent:
            bucket.receive()


class _BucketInFlight:
    """Gradients of one dtype and device side by side, and behind them for each whether this process has it."""

    @torch.no_grad()
    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, wire: torch.dtype | None) -> None:
        _refuse_sparse(parameters)
        self._parameters = parameters
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor([p.grad is not None for p in parameters], device=pieces[0].device)
        flat = torch.cat([*(piece.reshape(-1) for piece in pieces), present.to(pieces[0].dtype)])
        # Divided first, as in DDP: a sum of many half-precision gradients could overflow.
        self._flat = flat.to(flat.dtype if wire is None or flat.is_complex() else wire).div_(group.size())
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the sum and hand it back; what no process has a gradient for stays without one."""
        assert self._work is not None  # asynchronous calls return their handle
        self._work.wait()
        sizes = [p.numel() for p in self._parameters]
        *averages, present = torch.split(self._flat, [*sizes, len(sizes)])
        # To look at them makes a GPU wait, so only where it matters.
        found = present.tolist() if any(p.grad is None for p in self._parameters) else [1.0] * len(sizes)
        for p, average, has_it in zip(self._parameters, averages, found, strict=True):
            if p.grad is not None:
                p.grad.copy_(average.view_as(p))
            elif has_it:
                p.grad = average.view_as(p).to(p.dtype, copy=True)


def _refuse_sparse(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"a live parameter of shape {tuple(p.shape)} has a sparse gradient, which is not averaged over "
                "processes at fast-only steps: build its embedding with sparse=False, or put it into a slow group."
            )


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
