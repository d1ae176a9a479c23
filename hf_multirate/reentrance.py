"""Notice live modules that run inside a function of autograd, as in reentrant activation checkpointing.

Such a function runs its modules without recording them, and gives them a gradient only if one of its inputs requires
one. At a fast step nothing below the live part does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from hf_multirate.hooks import OwnHook


@contextmanager
def inside_functions(model: nn.Module, parameters: Set[nn.Parameter]) -> Iterator[set[nn.Parameter]]:
    """Collect those of ``parameters`` whose module runs inside the forward pass of a function of autograd.

    The set is filled while the context is open.
    """
    found: set[nn.Parameter] = set()

    def note(module: nn.Module, args: Any) -> None:
        del args
        if module in owners and not torch.is_grad_enabled() and _in_function(sys._getframe()):
            found.update(owners[module])

    # Found beforehand: a wrapper that shards puts other tensors in their place for a forward pass.
    own = {part: [p for p in part.parameters(recurse=False) if p in parameters] for part in model.modules()}
    owners = {part: members for part, members in own.items() if members}
    handles = [module.register_forward_pre_hook(OwnHook(note, module)) for module in owners]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _in_function(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        first = code.co_varnames[0] if code.co_name == "forward" and code.co_argcount else ""
        if first and isinstance(frame.f_locals.get(first), FunctionCtx):
            return True
        frame = frame.f_back
    return False
