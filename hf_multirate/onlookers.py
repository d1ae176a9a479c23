"""Notice when somebody looks at a model in the middle of a step: saves it, or evaluates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def on_look(model: nn.Module, act: Callable[[], None]) -> list[Any]:
    """Call ``act`` before ``model`` gives its state_dict, and before a forward pass without gradients.

    Returns:
        Handles whose ``remove()`` ends that.
    """

    def before_state_dict(*args: Any) -> None:
        del args
        act()

    def before_forward(*args: Any) -> None:
        del args
        if not torch.is_grad_enabled():
            act()

    handle = model.register_state_dict_pre_hook(before_state_dict)  # type: ignore[no-untyped-call]
    return [handle, model.register_forward_pre_hook(before_forward)]
