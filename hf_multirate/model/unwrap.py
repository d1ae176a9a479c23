"""Names of parameters as the user wrote them, whatever has been put around their modules since."""

from __future__ import annotations

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch._dynamo import OptimizedModule


WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
"""What regional compilation and Accelerate's activation checkpointing put into the names of parameters."""


def canonical_name(name: str) -> str:
    """The name without what wrappers of inner modules have added to it.

    >>> canonical_name("model.layers.0._orig_mod.self_attn.q_proj.weight")
    'model.layers.0.self_attn.q_proj.weight'
    """
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def canonical_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Canonical name -> parameter, in the order of ``model.named_parameters()``."""
    return {canonical_name(name): parameter for name, parameter in model.named_parameters()}


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model as made, whatever DistributedDataParallel and ``torch.compile`` have put around it."""
    inner: nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile(model)`` or ``model.compile()`` was called for ``model`` or a part of it."""
    return any(
        isinstance(module, OptimizedModule) or module._compiled_call_impl is not None for module in model.modules()
    )
