"""An optimizer, and a model, is in the hands of one controller at a time: two would both move what is idle."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn
from torch.optim import Optimizer


_leased: WeakSet[Optimizer | nn.Module] = WeakSet()


def innermost(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer itself, without the wrapper of Accelerate.

    Raises:
        TypeError: it is no torch optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach() takes one torch optimizer, got {type(optimizer).__name__}.")
    wrapped = vars(optimizer).get("optimizer")  # Accelerate's wrapper is an optimizer that holds one
    return innermost(wrapped) if isinstance(wrapped, Optimizer) else optimizer


def require_free(optimizer: Optimizer, model: nn.Module) -> None:
    """Raise `RuntimeError` if a controller has one of the two already."""
    for name, thing in (("optimizer", optimizer), ("model", model)):
        if thing in _leased:
            raise RuntimeError(f"the {name} is attached already, to this or another controller: call detach() first.")


def lease(optimizer: Optimizer, model: nn.Module) -> None:
    """Note that a controller has taken both."""
    _leased.update((optimizer, model))


def release(optimizer: Optimizer, model: nn.Module) -> None:
    """Note that it has let go of them."""
    _leased.difference_update((optimizer, model))
