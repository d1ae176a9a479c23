"""Run idle modules in a lower precision than the rest: their weights are cast once, and again when they have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_multirate.model.hooks import around_forward, tensors_in


logger = logging.get_logger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

LOWERED = (nn.Linear, _ConvNd, Conv1D)
"""Modules whose weight autocast would cast at each forward pass."""


class LowPrecisionForward:
    """Autocast of single modules, with copies of their weights in ``dtype`` that last as long as the weights stay.

    Autocast keeps no copy of a weight that requires no gradient. Here a weight is cast again only when something was
    written into it since: once a refresh where idle groups hold, and all weights of a module in one call where they
    drift. What writes without a mark, as the fused optimizers of torch do, has to be told of by `forget`.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        self._marks: dict[nn.Parameter, tuple[int, int]] = {}
        self._taken: dict[nn.Module, bool] = {}

    def forget(self, weights: Iterable[nn.Parameter]) -> None:
        """Cast ``weights`` anew, whatever was written into them."""
        for weight in weights:
            self._marks.pop(weight, None)

    def forget_all(self) -> None:
        """Cast every weight anew: a write of others through ``.data`` leaves no mark."""
        self._marks.clear()

    def close(self) -> None:
        """Keep nothing."""
        self._taken.clear()
        self._marks.clear()
        self._copies.clear()

    def _cast(self, weights: Iterable[nn.Parameter]) -> None:
        stale = [weight for weight in weights if self._marks.get(weight) != _mark(weight)]
        for weight in stale:
            if weight not in self._copies:
                self._copies[weight] = nn.Parameter(weight.detach().to(self._dtype), requires_grad=False)
        if stale:
            with torch.no_grad():
                torch._foreach_copy_(
                    [self._copies[weight].data for weight in stale], [weight.data for weight in stale]
                )
        self._marks |= {weight: _mark(weight) for weight in stale}

    def casting(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Run the forward pass of each of ``modules`` in ``dtype``, float32 going in and out, while it is open.

        One with weights of another precision stays as it is, and so does one whose input requires a gradient, which
        would be rounded on its way to what is live below.
        """
        return around_forward([module for module in modules if self._takes(module)], self._lower, convert_to_fp32)

    def _takes(self, module: nn.Module) -> bool:
        if module not in self._taken:
            others = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
            self._taken[module] = not others
            if others:
                logger.warning_once(
                    f"inactive_dtype is for weights in float32, and leaves those in {others} as they are."
                )
        return self._taken[module]

    def _lower(self, module: nn.Module, inputs: Any) -> Callable[[], None] | None:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(inputs)):
            return None
        weights = _weights(module)
        self._cast(weights.values())
        context = ExitStack()
        context.enter_context(torch.autocast(next(module.parameters()).device.type, self._dtype))
        for part, weight in weights.items():
            part._parameters["weight"] = self._copies[weight]

        def take_back() -> None:
            for part, weight in weights.items():
                part._parameters["weight"] = weight
            context.close()

        return take_back


def _weights(module: nn.Module) -> Mapping[nn.Module, nn.Parameter]:
    """Weights in float32 of the parts that are worth casting."""
    parts = [part for part in module.modules() if isinstance(part, LOWERED)]
    weights = {part: part._parameters.get("weight") for part in parts}  # none where it is computed from others
    return {part: w for part, w in weights.items() if w is not None and _is_single(w)}


def _mark(weight: Tensor) -> tuple[int, int]:
    """Changes with most writes into ``weight``, and where it gets other data."""
    return weight._version, weight.data_ptr()


def _is_single(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter) and weight.dtype == torch.float32
