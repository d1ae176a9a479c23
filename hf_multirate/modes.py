"""Run idle modules as what they are at a fast-only step, an inference pass: without dropout, or without a trace.

That is cheaper, and what the fast part learns from has less noise in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_multirate.hooks import around_forward


def evaluating(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Put each of ``modules``, with all inside it, into eval mode for the duration of its own forward pass.

    Batch norm is left as it is: with running statistics that are updated at full steps only, the fast part would see
    features of another scale at each kind of step.

    Modes are set around each forward pass, so that a loop may call ``model.train()`` while the context is open, as
    Trainer does. The flags are set one by one and given back exactly, because modules of a user may be in eval mode
    for good, or override ``train()``.
    """
    return around_forward(modules, _evaluate)


def _evaluate(module: nn.Module, inputs: Any) -> Callable[[], None]:
    del inputs
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        part.training = part.training and isinstance(part, _NormBase)

    def take_back() -> None:
        for part, mode in modes.items():
            part.training = mode

    return take_back


@contextmanager
def frozen_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the buffers of ``modules`` back on exit, such as the running statistics of batch norm."""
    kept = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
