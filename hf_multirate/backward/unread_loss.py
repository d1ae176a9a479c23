"""Skip the backward pass of a loss that no live parameter has a part in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from torch import Tensor


@contextmanager
def skipped_backward(accelerator: Accelerator, at_fast_step: Callable[[], bool]) -> Iterator[None]:
    """While open, ``accelerator.backward`` leaves out a loss without a gradient, where ``at_fast_step`` says so.

    A batch may not use the fast part: one of text alone, where that is for images. In standard training the rest of
    the model would get its gradients. At a fast step there is nothing to do.
    """
    attributes, backward = vars(accelerator), accelerator.backward
    before = attributes.get("backward")

    def skip_or_run(loss: Tensor, **kwargs: Any) -> None:
        if loss.requires_grad or not at_fast_step():
            backward(loss, **kwargs)

    attributes["backward"] = skip_or_run
    try:
        yield
    finally:
        if before is None:
            attributes.pop("backward", None)
        else:
            attributes["backward"] = before
