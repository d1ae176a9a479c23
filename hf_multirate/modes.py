"""Run idle modules as what they are at a fast step, an inference pass: without dropout, or without a trace.

That is cheaper, and what the fast part learns from has less noise in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from hf_multirate.hooks import around_forward
from hf_multirate.noise import only_noise


def evaluating(
    modules: Iterable[nn.Module], known: dict[nn.Module, list[nn.Module]] | None = None
) -> AbstractContextManager[None]:
    """Take dropout, and noise like it, away from ``modules`` and all inside them during their own forward passes.

    Parts of which the mode decides about noise alone are in eval mode then. All others stay in training mode: those
    with running statistics, so that they see every batch as in standard training, and those with other outputs.

    Modes are set around each forward pass, so that a loop may call ``model.train()`` while the context is open, as
    Trainer does. The flags are set one by one and given back exactly, because modules of a user may be in eval mode
    for good, or override ``train()``.

    Args:
        modules: The modules.
        known: Keeps the parts of each module that are switched, for the next call.
    """
    known = {} if known is None else known
    noisy: dict[nn.Module, list[nn.Module]] = {}
    for module in modules:
        if module not in known:
            known[module] = [part for part in module.modules() if only_noise(part)]
        noisy[module] = [part for part in known[module] if "forward" not in vars(part)]  # put there since

    def evaluate(module: nn.Module, inputs: Any) -> Callable[[], None]:
        del inputs
        switched = [part for part in noisy[module] if part.training]
        for part in switched:
            part.training = False

        def take_back() -> None:
            for part in switched:
                part.training = True

        return take_back

    return around_forward(noisy, evaluate)


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
