"""Hooks around ``optimizer.step()`` that run once per step, even if ``step`` calls ``super().step()``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from hf_multirate.model.hooks import OwnHook


StepHook = Callable[[Optimizer, Any, Any], None]

_WRAPPER = Optimizer.profile_hook_step(lambda optimizer: None).__code__
"""Code of the function that torch puts around each ``step``, and that calls the hooks."""


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
        if self._depth and _running(optimizer) == 1:
            self._depth = 0  # the last step raised an error, and is tried again
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


def _running(optimizer: Optimizer) -> int:
    """Number of nested calls of ``step`` of an optimizer that are running."""
    number, frame = 0, sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        number += frame.f_code is _WRAPPER and frame.f_locals["args"][0] is optimizer
    return number
