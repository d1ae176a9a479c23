"""What acts on a model or an optimizer at each step: the parts that a step is made of."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from hf_multirate.config.schedule import Step


class StepPart:
    """One part of a step. A part overrides the methods that it needs; the others do nothing.

    For each step `begin` is called first, then `micro_batch` once or more often, `before_step`, the optimizer, and
    `after_step` unless the optimizer skipped the step.
    """

    def begin(self, step: Step) -> None:
        """``step`` begins."""

    def micro_batch(self, step: Step, *, last: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch, the ``last`` of ``step`` if that is known."""
        del step, last
        return nullcontext()

    def before_step(self, step: Step) -> bool:
        """The optimizer is about to take ``step``; False if no parameter has a gradient, so that nothing moves."""
        del step
        return True

    def after_step(self, step: Step) -> None:
        """The optimizer has taken ``step``."""

    def end(self) -> None:
        """A step is over, whether the optimizer has taken it or skipped it."""

    def close(self) -> None:
        """Training is over: leave nothing on the model or the optimizer."""
