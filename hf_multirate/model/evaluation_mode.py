"""Run a model in evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which all modules are in evaluation mode: no dropout, and no running statistics."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False  # train() of some models sets more than the mode
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
