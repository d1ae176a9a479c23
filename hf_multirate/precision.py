"""Run idle modules in a lower precision than the rest: their weights are cast once, and again when they have moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from hf_multirate.hooks import around_forward


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}

LOWERED = (nn.Linear, _ConvNd, Conv1D)
"""Modules whose weight autocast would cast at each forward pass."""


class LowPrecision:
    """Autocast of single modules, with copies of their weights in ``dtype`` that last as long as the weights stay.

    Autocast keeps no copy of a weight that requires no gradient. Here a weight is cast again only when something was
    written into it since: once a refresh where idle groups hold, and all weights of a module in one call where they
    drift.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        self._versions: dict[nn.Parameter, int] = {}

    def forget(self) -> None:
        """Cast every weight anew: a write through ``.data`` leaves no mark."""
        self._versions.clear()

    def _cast(self, weights: Iterable[nn.Parameter]) -> None:
        stale = [weight for weight in weights if self._versions.get(weight) != weight._version]
        for weight in stale:
            if weight not in self._copies:
                self._copies[weight] = nn.Parameter(weight.detach().to(self._dtype), requires_grad=False)
        if stale:
            with torch.no_grad():
                torch._foreach_copy_(
                    [self._copies[weight].data for weight in stale], [weight.data for weight in stale]
                )
        self._versions |= {weight: weight._version for weight in stale}

    def casting(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """Run the forward pass of each of ``modules`` in ``dtype``, float32 going in and out, while it is open."""
        return around_forward(modules, self._lower, convert_to_fp32)

    def _lower(self, module: nn.Module) -> Callable[[], None]:
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


def _is_single(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter) and weight.dtype == torch.float32
