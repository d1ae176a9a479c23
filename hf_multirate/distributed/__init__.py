"""Training with several processes: gradient synchronisation at fast steps for each wrapper of a model."""

from __future__ import annotations

from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from hf_multirate.distributed.ddp import DDPSync
from hf_multirate.distributed.fsdp2 import FSDP2Sync
from hf_multirate.distributed.grad_sync import GradSync
from hf_multirate.distributed.unsupported import FSDP1, REPLICAS, UNTESTED, raise_unsupported
from hf_multirate.model.unwrap import ddp_wrappers


__all__ = ["GradSync", "sync_for"]


def sync_for(model: nn.Module) -> GradSync:
    """Return the gradient synchronisation for the wrapper of ``model``.

    The wrapper itself decides, not the settings: on a CPU, Accelerate uses DDP although FSDP was requested.

    Raises:
        NotImplementedError: the wrapper is DataParallel or FSDP1, the model contains several DDP wrappers, or its
            trainable parameters are on several devices.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters() if parameter.requires_grad})
    if len(devices) > 1:
        raise_unsupported(f"trainable parameters on several devices ({', '.join(devices)}), {UNTESTED}")
    wrappers = ddp_wrappers(model)
    if len(wrappers) > 1:
        raise_unsupported(
            f"{len(wrappers)} modules wrapped in DistributedDataParallel within one model. Wrap only the outer model."
        )
    if wrappers:
        return DDPSync(wrappers[0])
    for module in model.modules():
        if isinstance(module, FSDPModule):
            return FSDP2Sync(model)
        if isinstance(module, FullyShardedDataParallel):
            raise_unsupported(FSDP1)
        if isinstance(module, nn.DataParallel):
            raise_unsupported(f"DataParallel, {REPLICAS}")
    return GradSync()
