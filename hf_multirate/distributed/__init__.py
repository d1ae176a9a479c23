"""Several processes: which wrapper a model has, and what that asks for at fast-only steps."""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch._dynamo import OptimizedModule
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from hf_multirate.distributed.ddp import DDPSync
from hf_multirate.distributed.fsdp2 import FSDP2Sync
from hf_multirate.distributed.refusals import FSDP1, REPLICAS, refuse
from hf_multirate.distributed.sync import GradSync


__all__ = ["GradSync", "choose", "is_compiled", "unwrapped"]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model as made, whatever DistributedDataParallel and ``torch.compile`` have put around it."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile(model)`` or ``model.compile()`` was called for ``model`` or a part of it."""
    return any(
        isinstance(module, OptimizedModule) or module._compiled_call_impl is not None for module in model.modules()
    )


def choose(model: nn.Module) -> GradSync:
    """How gradients of ``model`` are synchronised, by what it is wrapped in.

    The model is asked and not the settings: on a CPU Accelerate wraps in DDP what is to be sharded.

    Raises:
        NotImplementedError: the wrapper is DataParallel or FSDP1, or there are several of DDP.
    """
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if len(wrappers) > 1:
        refuse(f"{len(wrappers)} modules wrapped in DistributedDataParallel within one model: wrap the whole model.")
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            return DDPSync(module)
        if isinstance(module, FSDPModule):
            return FSDP2Sync(model)
        if isinstance(module, FullyShardedDataParallel):
            refuse(FSDP1)
        if isinstance(module, nn.DataParallel):
            refuse(f"DataParallel, {REPLICAS}")
    return GradSync()
