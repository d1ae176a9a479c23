"""Notice when somebody looks at a model in the middle of a step: saves it, copies it, or evaluates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_multirate.hooks import OwnHook


def on_look(model: nn.Module, look: Callable[[], None], train: Callable[[], None] | None = None) -> list[Any]:
    """Call ``look`` before ``model`` gives its state_dict, is copied or pickled, or runs without gradients.

    Args:
        model: The model.
        look: What to do then. It may remove forward hooks, but not those for a state_dict.
        train: What to do before a forward pass with gradients.

    Returns:
        Handles whose ``remove()`` ends that.
    """

    def before_state_dict(module: nn.Module, *args: Any) -> None:
        del module, args
        look()

    def before_forward(module: nn.Module, *args: Any) -> None:
        del module, args
        if not torch.is_grad_enabled():
            look()
        elif train is not None:
            train()

    # A module is copied in the order of its attributes: these hooks come before all modules inside of it, and behind
    # its own forward hooks, which may be removed then.
    saving = OwnHook(before_state_dict, model, copied=look)
    handle = model.register_state_dict_pre_hook(saving)  # type: ignore[no-untyped-call]
    return [handle, model.register_forward_pre_hook(OwnHook(before_forward, model))]
