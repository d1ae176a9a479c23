"""Learning rates that are multiplied during one step of an optimizer."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


class ScaledRates:
    """Multiplies learning rates of parameter groups until `restore`.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._changed: dict[int, tuple[Any, Any]] = {}
        """Index of a parameter group -> its learning rate, and the multiplied one."""

    def scale(self, index: int, factor: float) -> None:
        """Multiply the learning rate of parameter group ``index``."""
        settings = self._optimizer.param_groups[index]
        rate = settings["lr"]
        settings["lr"] = rate * factor
        self._changed[index] = rate, settings["lr"]

    def given(self, index: int) -> Any:
        """Learning rate of parameter group ``index`` without the factor."""
        return self._changed[index][0] if index in self._changed else self._optimizer.param_groups[index]["lr"]

    def restore(self) -> None:
        """Restore the learning rates that nothing else has changed since."""
        for index, (rate, changed) in self._changed.items():
            if self._optimizer.param_groups[index]["lr"] is changed:
                self._optimizer.param_groups[index]["lr"] = rate
        self._changed.clear()
