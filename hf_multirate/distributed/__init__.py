"""Several processes: which wrapper a model has, and what that asks for at fast-only steps."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from hf_multirate.distributed.ddp import DDPSync
from hf_multirate.distributed.fsdp2 import FSDP2Sync
from hf_multirate.distributed.grad_sync import GradSync
from hf_multirate.distributed.unsupported import FSDP1, REPLICAS, raise_unsupported


__all__ = ["GradSync", "choose"]


def choose(model: nn.Module) -> GradSync:
    """How gradients of ``model`` are synchronised, by what it is wrapped in.

    The model is asked and not the settings: on a CPU Accelerate wraps in DDP what is to be sharded.

    Raises:
        NotImplementedError: the wrapper is DataParallel or FSDP1, or there are several of DDP.
    """
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if len(wrappers) > 1:
        raise_unsupported(
            f"{len(wrappers)} modules wrapped in DistributedDataParallel within one model: wrap the whole model."
        )
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return DDPSync(module)
        if isinstance(module, FSDPModule):
            return FSDP2Sync(model)
        if isinstance(module, FullyShardedDataParallel):
            raise_unsupported(FSDP1)
        if isinstance(module, nn.DataParallel):
            raise_unsupported(f"DataParallel, {REPLICAS}")
    return GradSync()
