"""Notice when somebody looks at a model in the middle of a step: saves it, or evaluates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def on_look(model: nn.Module, look: Callable[[], None], train: Callable[[], None] | None = None) -> list[Any]:
    """Call ``look`` before ``model`` gives its state_dict, and before a forward pass without gradients.

    A copy that is made of the model meanwhile has these hooks too, on which they do nothing.

    Args:
        model: The model.
        look: What to do then.
        train: What to do before a forward pass with gradients.

    Returns:
        Handles whose ``remove()`` ends that.
    """

    def before_state_dict(module: nn.Module, *args: Any) -> None:
        del args
        if module is model:
            look()

    def before_forward(module: nn.Module, *args: Any) -> None:
        del args
        if module is not model:
            return
        if not torch.is_grad_enabled():
            look()
        elif train is not None:
            train()

    handle = model.register_state_dict_pre_hook(before_state_dict)  # type: ignore[no-untyped-call]
    return [handle, model.register_forward_pre_hook(before_forward)]
