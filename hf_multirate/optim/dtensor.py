"""Parameters of which a process holds a shard: arithmetic goes on the shard, sums go over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``: its memory, not a copy. Call it without gradients enabled."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total(sums: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Sums over whole parameters from those over what this process holds of each.

    Args:
        sums: One number for each of ``parameters``, all in one dtype.
        parameters: The parameters, some or all of them sharded.

    Returns:
        A vector with an entry for each parameter, the same in all processes.
    """
    result = torch.stack(list(sums))
    kinds: dict[tuple[object, tuple[object, ...]], list[int]] = {}
    for i, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            kinds.setdefault((parameter.device_mesh, parameter.placements), []).append(i)
    for indices in kinds.values():
        like = parameters[indices[0]]
        assert isinstance(like, DTensor)  # only those are in kinds
        adds = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
        result[indices] = DTensor.from_local(result[indices], like.device_mesh, adds, run_check=False).full_tensor()
    return result


def whole(shard: Tensor, like: Tensor) -> Tensor:
    """The tensor of which each process has the ``shard`` that it has of ``like``; all processes call it."""
    if not isinstance(like, DTensor):
        return shard
    sharded = DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def shard_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of what this process holds of ``tensor``, if it is laid out as ``like`` is; on the device of ``like``."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device, copy=True)
    # Every process has read the same file: nothing has to be sent.
    sharded = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local().clone()
