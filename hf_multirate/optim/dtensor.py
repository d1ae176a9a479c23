"""Sharded parameters (DTensor): arithmetic on the local shard, sums over all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """The local shard of ``tensor``, which shares its memory. Call it without gradients enabled."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_sums(sums: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Sums over full parameters from sums over their local shards; a collective call.

    Args:
        sums: One scalar tensor for each parameter, all of the same dtype.
        parameters: The parameters, of which some or all are sharded.

    Returns:
        A tensor of shape ``(len(parameters),)``, equal in all processes.
    """
    full = list(sums)
    kinds: dict[tuple[object, tuple[object, ...]], list[int]] = {}
    for i, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            kinds.setdefault((parameter.device_mesh, parameter.placements), []).append(i)
    for indices in kinds.values():
        like = parameters[indices[0]]
        assert isinstance(like, DTensor)  # kinds holds only indices of DTensors
        adds = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
        # Stacked here, because a list of indices would be copied to the device, for which the host waits.
        shards = torch.stack([sums[i] for i in indices])
        added = DTensor.from_local(shards, like.device_mesh, adds, run_check=False).full_tensor()
        for i, value in zip(indices, added.unbind(), strict=True):
            full[i] = value
    return torch.stack(full)


def full_tensor(shard: Tensor, like: Tensor) -> Tensor:
    """The full tensor of the shards of all processes, laid out as ``like``; a collective call."""
    if not isinstance(like, DTensor):
        return shard
    sharded = DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of the local shard of ``tensor``, with the layout and the device of ``like``."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device, copy=True)
    # Every process has read the same file, so no communication is needed.
    sharded = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local().clone()
