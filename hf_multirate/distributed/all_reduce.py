"""Average gradients over processes in flat buckets, while backward runs."""

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
    """Replaces the gradients of one step by their mean over the processes of a group.

    A missing gradient counts as zero if another process has one, as in DDP with ``find_unused_parameters``. All
    processes have to pass the same parameters in the same order.

    Args:
        parameters: The parameters, with or without a gradient. Backward should reach the last ones first.
        group: The process group.
        wire: dtype in which gradients are sent; None is the dtype of each gradient.
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
        """Number of gradients that each parameter has received within `watching`."""

    @contextmanager
    def watching(self, *, sends: bool) -> Iterator[None]:
        """A context for backward that counts gradients, and with ``sends`` sends each bucket once it is complete.

        With ``sends``, each parameter may receive only one gradient, because later ones would not be in the mean.
        """

        def reached(parameter: nn.Parameter) -> None:
            self.counts[parameter] += 1
            self._waiting[self._place[parameter]].discard(parameter)
            while sends and len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
                self._send()

        handles = [
            parameter.register_post_accumulate_grad_hook(reached)  # type: ignore[no-untyped-call]
            for parameter in self._place
            if parameter.requires_grad  # others were frozen during training; their buckets are sent in the end
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _send(self) -> None:
        self._sent.append(_BucketInFlight(self._buckets[len(self._sent)], self._group, self._wire))

    def finish(self) -> None:
        """Send the remaining buckets, wait for all buckets, and replace the gradients by their mean.

        Raises:
            ValueError: a gradient is sparse.
            RuntimeError: a parameter received another gradient after its bucket was sent.
        """
        if self._sent and any(count > 1 for count in self.counts.values()):
            raise RuntimeError(
                "a parameter received two gradients in one backward pass, but only one in the first steps, so part of "
                "its gradient is not in the mean over processes. Let backward reach each parameter once, as "
                "DistributedDataParallel requires, or several times from the first step on."
            )
        while len(self._sent) < len(self._buckets):
            self._send()
        for bucket in self._sent:
            bucket.receive()


class _BucketInFlight:
    """The gradients of a bucket in one flat tensor, followed by one flag per gradient: 1 if this process has it."""

    @torch.no_grad()
    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, wire: torch.dtype | None) -> None:
        _check_dense(parameters)
        self._parameters = parameters
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(piece.reshape(-1) for piece in pieces), _flags(parameters, pieces[0])])
        # Divided before the sum, as in DDP, because a sum of half-precision gradients could overflow.
        self._flat = flat.to(flat.dtype if wire is None or flat.is_complex() else wire).div_(group.size())
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the mean and write it to the gradients; without a gradient in any process there is none."""
        assert self._work is not None  # asynchronous calls return a handle
        self._work.wait()
        sizes = [p.numel() for p in self._parameters]
        *averages, present = torch.split(self._flat, [*sizes, len(sizes)])
        # Reading the flags waits for the GPU, so they are read only if a gradient is missing.
        flags = present.tolist() if any(p.grad is None for p in self._parameters) else [1.0] * len(sizes)
        pairs = [(p.grad, average.view_as(p)) for p, average in zip(self._parameters, averages, strict=True)]
        gradients = [gradient for gradient, _ in pairs if gradient is not None]
        if gradients:
            torch._foreach_copy_(gradients, [average for gradient, average in pairs if gradient is not None])
        for p, (gradient, average), is_present in zip(self._parameters, pairs, flags, strict=True):
            if gradient is None and is_present:
                p.grad = average.to(p.dtype, copy=True)


def _flags(parameters: Sequence[nn.Parameter], like: torch.Tensor) -> torch.Tensor:
    """One number for each parameter, on the device and in the dtype of ``like``: 1 if it has a gradient, else 0.

    A list of numbers is not copied to the device, because the host would wait for all of backward so far.
    """
    flags = like.new_ones(len(parameters))
    for i, parameter in enumerate(parameters):
        if parameter.grad is None:
            flags[i].zero_()
    return flags


def _check_dense(parameters: Sequence[nn.Parameter]) -> None:
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"a live parameter of shape {tuple(p.shape)} has a sparse gradient, which cannot be averaged over "
                "processes at fast steps. Create its embedding with sparse=False, or put it into a slow group."
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


def average(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """Replace tensors by their mean over the processes of a group, in place; None is one process."""
    if group is None:
        return
    for tensor in tensors:
        dist.all_reduce(tensor, group=group)
        tensor.div_(group.size())
