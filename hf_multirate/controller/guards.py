"""Allow one controller per model and optimizer, and hooks that run before a model is saved or evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer

from hf_multirate.config.validation import wrong_type
from hf_multirate.model.hooks import OwnHook


_attached: WeakSet[Optimizer | nn.Module] = WeakSet()
"""Models and optimizers with a controller; two controllers would both move idle parameters."""


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer without the wrapper of Accelerate. Other wrappers count as optimizers themselves.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer.
        ValueError: its class does not call ``Optimizer.__init__``, and a scheduler has replaced its ``step``.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach() takes one torch optimizer, got {type(optimizer).__name__}.")
    if isinstance(optimizer, AcceleratedOptimizer):
        return unwrap_optimizer(optimizer.optimizer)
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        _add_hooks(optimizer)
    return optimizer


def _add_hooks(optimizer: Optimizer) -> None:
    """Create the attributes for step hooks, because some wrappers of optimizers do not call ``Optimizer.__init__``."""
    if "step" in vars(optimizer):
        name = type(optimizer).__name__
        raise ValueError(
            f"optimizer {name} has no step hooks, because {name}.__init__ does not call Optimizer.__init__. Call "
            "super().__init__(params, defaults) in it, or create its scheduler after attach()."
        )
    try:
        _ = optimizer.defaults
    except AttributeError:
        optimizer.defaults = {}
    Optimizer.__setstate__(optimizer, {})


def check_unattached(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise `RuntimeError` if a controller is attached to ``optimizer`` or ``model`` already."""
    for name, value in (("optimizer", optimizer), ("model", model)):
        if value in _attached:
            raise RuntimeError(f"the {name} is attached already, to this or another controller. Call detach() first.")


def is_attached(optimizer: Optimizer) -> bool:
    """Whether a controller is attached to ``optimizer``."""
    return optimizer in _attached


def mark_attached(optimizer: Optimizer, model: nn.Module) -> None:
    """Record that a controller is attached to ``optimizer`` and ``model``."""
    _attached.update((optimizer, model))


def mark_detached(optimizer: Optimizer, model: nn.Module) -> None:
    """Record that no controller is attached to ``optimizer`` and ``model`` any more."""
    _attached.difference_update((optimizer, model))


def before_save_or_eval(
    model: nn.Module, callback: Callable[[], None], train: Callable[[], None] | None = None
) -> list[Any]:
    """Call ``callback`` before ``state_dict()``, copies and pickles of a model, and forward passes without gradients.

    Args:
        model: The model.
        callback: The function to call. It may remove forward hooks, but no state_dict hooks.
        train: A function to call before a forward pass with gradients.

    Returns:
        Handles of the hooks, each with a method ``remove()``.
    """

    def before_state_dict(module: nn.Module, *args: Any) -> None:
        del module, args
        callback()

    def before_forward(module: nn.Module, *args: Any) -> None:
        del module, args
        if not torch.is_grad_enabled():
            callback()
        elif train is not None:
            train()

    # Copying a module copies its attributes in order: state_dict hooks before the submodules and after the forward
    # hooks of the module itself. So the callback may remove forward hooks while the module is copied.
    hook = OwnHook(before_state_dict, model, copied=callback)
    handle = model.register_state_dict_pre_hook(hook)  # type: ignore[no-untyped-call]
    return [handle, model.register_forward_pre_hook(OwnHook(before_forward, model))]


def require_model(caller: str, value: Any) -> None:
    """Raise `TypeError` if ``value`` is not a torch module."""
    if not isinstance(value, nn.Module):
        wrong_type(f"the model of {caller}", "a torch.nn.Module", value)
