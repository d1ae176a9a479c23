"""An optimizer, and a model, is in the hands of one controller at a time: two would both move what is idle."""

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


_leased: WeakSet[Optimizer | nn.Module] = WeakSet()


def unwrap_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, without the wrapper of Accelerate; any other that holds optimizers is one by itself.

    Raises:
        TypeError: it is no torch optimizer.
        ValueError: its class has not called ``Optimizer.__init__``, and a scheduler has replaced its ``step``.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach() takes one torch optimizer, got {type(optimizer).__name__}.")
    if isinstance(optimizer, AcceleratedOptimizer):
        return unwrap_optimizer(optimizer.optimizer)
    if "_optimizer_step_pre_hooks" not in vars(optimizer):
        _add_hooks(optimizer)
    return optimizer


def _add_hooks(optimizer: Optimizer) -> None:
    """Make room for step hooks, as ``Optimizer.__init__`` does: some wrappers of optimizers do not call it."""
    if "step" in vars(optimizer):
        name = type(optimizer).__name__
        raise ValueError(
            f"optimizer {name} has no step hooks, since {name}.__init__ does not call Optimizer.__init__. Call "
            "super().__init__(params, defaults) in it, or make its scheduler after attach()."
        )
    try:
        _ = optimizer.defaults
    except AttributeError:
        optimizer.defaults = {}
    Optimizer.__setstate__(optimizer, {})


def check_unattached(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise `RuntimeError` if a controller has one of the two already."""
    for name, thing in (("optimizer", optimizer), ("model", model)):
        if thing in _leased:
            raise RuntimeError(f"the {name} is attached already, to this or another controller: call detach() first.")


def is_leased(optimizer: Optimizer) -> bool:
    """Whether a controller has ``optimizer``."""
    return optimizer in _leased


def mark_attached(optimizer: Optimizer, model: nn.Module) -> None:
    """Note that a controller has taken both."""
    _leased.update((optimizer, model))


def mark_detached(optimizer: Optimizer, model: nn.Module) -> None:
    """Note that it has let go of them."""
    _leased.difference_update((optimizer, model))


def before_save_or_eval(
    model: nn.Module, look: Callable[[], None], train: Callable[[], None] | None = None
) -> list[Any]:
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


def require_model(caller: str, value: Any) -> None:
    """Raise `TypeError` if ``value`` is no model of torch."""
    if not isinstance(value, nn.Module):
        wrong_type(f"the model of {caller}", "a torch.nn.Module", value)
