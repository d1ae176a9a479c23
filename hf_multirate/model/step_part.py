"""Interface of the parts of a step, which act on the model or the optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from hf_multirate.config.schedule import Step


class StepPart:
    """Part of a step. Subclasses override the methods that they need; the others do nothing.

    Methods are called in this order: `begin`, `micro_batch` for each micro-batch, `before_step`, `after_step` (not if
    the optimizer skips the step), `end`.
    """

    def begin(self, step: Step) -> None:
        """Called at the start of ``step``."""

    def micro_batch(self, step: Step, *, last: bool) -> AbstractContextManager[None]:
        """Context manager for forward and backward of one micro-batch; ``last`` if it is the last one of ``step``."""
        del step, last
        return nullcontext()

    def before_step(self, step: Step) -> bool:
        """Called before ``optimizer.step()``; returns False if no parameter has a gradient and nothing will move."""
        del step
        return True

    def after_step(self, step: Step) -> None:
        """Called after ``optimizer.step()``, unless the optimizer skipped the step."""

    def end(self) -> None:
        """Called at the end of a step, including skipped steps."""

    def close(self) -> None:
        """Called at the end of training; removes everything from the model and the optimizer."""
