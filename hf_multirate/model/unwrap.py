"""Models and parameter names without wrappers such as DistributedDataParallel and ``torch.compile``."""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
"""Parts of parameter names that regional compilation and Accelerate's activation checkpointing add."""


def canonical_name(name: str) -> str:
    """Parameter name without the parts that wrappers of inner modules add.

    >>> canonical_name("model.layers.0._orig_mod.self_attn.q_proj.weight")
    'model.layers.0.self_attn.q_proj.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by canonical name, in the order of ``model.named_parameters()``."""
    return {canonical_name(name): parameter for name, parameter in model.named_parameters()}


def unwrap_model(model: nn.Module) -> nn.Module:
    """Remove the wrappers of DistributedDataParallel and ``torch.compile`` from a model."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner


def ddp_wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    """``model`` and those of its modules that are wrappers of DistributedDataParallel."""
    return [module for module in model.modules() if isinstance(module, DistributedDataParallel)]


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile(...)`` or ``.compile()`` was called for ``model`` or one of its modules."""
    return any(
        isinstance(module, OptimizedModule) or module._compiled_call_impl is not None for module in model.modules()
    )
