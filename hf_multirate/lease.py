"""An optimizer is in the hands of one controller at a time: two would both move what is idle."""

from __future__ import annotations

from weakref import WeakSet

from torch.optim import Optimizer


_leased: WeakSet[Optimizer] = WeakSet()


def innermost(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer itself, without the wrapper of Accelerate.

    Raises:
        TypeError: it is no torch optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach() takes one torch optimizer, got {type(optimizer).__name__}.")
    wrapped = vars(optimizer).get("optimizer")  # Accelerate's wrapper is an optimizer that holds one
    return innermost(wrapped) if isinstance(wrapped, Optimizer) else optimizer


def is_leased(optimizer: Optimizer) -> bool:
    """Whether a controller has the optimizer."""
    return optimizer in _leased


def lease(optimizer: Optimizer) -> None:
    """Note that a controller has taken the optimizer."""
    _leased.add(optimizer)


def release(optimizer: Optimizer) -> None:
    """Note that it has let go of it."""
    _leased.discard(optimizer)
