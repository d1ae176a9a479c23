"""Hooks around ``optimizer.step()`` that run once per step, even if ``step`` calls ``super().step()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from hf_multirate.model.hooks import OwnHook


StepHook = Callable[[Optimizer, Any, Any], None]


class StepHooks:
    """Calls two functions around each outermost ``step`` of an optimizer.

    torch calls step hooks in every class whose ``step`` runs: twice for a subclass that calls ``super().step()``.

    Args:
        optimizer: The optimizer.
        before: Called before each step.
        after: Called after each step that raised no error.
    """

    def __init__(self, optimizer: Optimizer, before: StepHook, after: StepHook) -> None:
        self._before, self._after = before, after
        self._depth = 0
        self._handles = [
            optimizer.register_step_pre_hook(OwnHook(self._enter, optimizer)),
            optimizer.register_step_post_hook(OwnHook(self._leave, optimizer)),
        ]

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            self._before(optimizer, args, kwargs)
        self._depth += 1

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._after(optimizer, args, kwargs)

    @property
    def inside(self) -> bool:
        """Whether a step is running."""
        return self._depth > 0

    def reset(self) -> None:
        """Reset the count of nested calls after a step that raised an error. Call it outside of steps."""
        self._depth = 0

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
