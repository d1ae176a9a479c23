"""What makes the host wait for a GPU: counted on a CPU too, where the same calls do not wait."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import TrainerCallback


WAITS = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.cpu,
    Tensor.numpy, Tensor.nonzero, torch.nonzero, torch.equal, torch.allclose, torch.tensor, torch.as_tensor,
}  # fmt: skip
"""Functions that read a device, or copy a list of numbers to it."""


class Waits(TorchFunctionMode):
    """Counts the calls of `WAITS` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.number: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAITS:
            self.number[function.__name__] += 1
        return function(*args, **(kwargs or {}))


class WaitsOfSteps(TrainerCallback):
    """The calls in each step of a run, from its first micro-batch to the end of the step."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._waits = Waits()
        self._waits.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._waits.__exit__(None, None, None)
        self.steps.append(self._waits.number)
