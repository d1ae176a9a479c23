"""Run inactive modules in lower precision; their weights are cast once, and again after they have changed."""

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

CAST_MODULES = (nn.Linear, _ConvNd, Conv1D)
"""Modules whose weight autocast casts at each forward pass."""


class LowPrecisionForward:
    """Runs single modules under autocast with cached copies of their weights in ``dtype``.

    Autocast does not cache a weight that requires no gradient. Here a weight is cast again only after a write to it.
    That is once per refresh if idle groups are frozen in between, and at every step if they drift. All outdated
    weights of a module are cast in one call. Writes that do not change the version of a tensor, as in the fused
    optimizers of torch, have to be reported by `forget`.

    Args:
        dtype: ``torch.bfloat16`` or ``torch.float16``.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._copies: dict[nn.Parameter, nn.Parameter] = {}
        self._versions: dict[nn.Parameter, tuple[int, int]] = {}
        self._is_supported: dict[nn.Module, bool] = {}

    def forget(self, weights: Iterable[nn.Parameter]) -> None:
        """Cast ``weights`` again at their next use."""
        for weight in weights:
            self._versions.pop(weight, None)

    def forget_all(self) -> None:
        """Cast every weight again at its next use, because a write through ``.data`` does not change the version."""
        self._versions.clear()

    def close(self) -> None:
        """Release all copies."""
        self._is_supported.clear()
        self._versions.clear()
        self._copies.clear()

    def _cast(self, weights: Iterable[nn.Parameter]) -> None:
        stale = [weight for weight in weights if self._versions.get(weight) != _version(weight)]
        for weight in stale:
            if weight not in self._copies:
                self._copies[weight] = nn.Parameter(weight.detach().to(self._dtype), requires_grad=False)
        if stale:
            with torch.no_grad():
                torch._foreach_copy_(
                    [self._copies[weight].data for weight in stale], [weight.data for weight in stale]
                )
        self._versions |= {weight: _version(weight) for weight in stale}

    def casting(self, modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
        """A context in which ``modules`` run forward in ``dtype``, with inputs and outputs in float32.

        Modules with weights of another precision than float32 are not changed. A module whose input requires a
        gradient is not changed either: that gradient would be rounded on its way to the live parameters below.
        """
        return around_forward(
            [module for module in modules if self._supports(module)], self._enter_low_precision, convert_to_fp32
        )

    def _supports(self, module: nn.Module) -> bool:
        if module not in self._is_supported:
            other_dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
            self._is_supported[module] = not other_dtypes
            if other_dtypes:
                logger.warning_once(
                    f"inactive_dtype applies only to weights in float32; weights in {other_dtypes} keep their dtype."
                )
        return self._is_supported[module]

    def _enter_low_precision(self, module: nn.Module, inputs: Any) -> Callable[[], None] | None:
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in(inputs)):
            return None
        weights = _weights(module)
        self._cast(weights.values())
        context = ExitStack()
        context.enter_context(torch.autocast(next(module.parameters()).device.type, self._dtype))
        for part, weight in weights.items():
            part._parameters["weight"] = self._copies[weight]

        def restore() -> None:
            for part, weight in weights.items():
                part._parameters["weight"] = weight
            context.close()

        return restore


def _weights(module: nn.Module) -> Mapping[nn.Module, nn.Parameter]:
    """Submodule -> its float32 weight, for the submodules of `CAST_MODULES` in ``module``."""
    parts = [part for part in module.modules() if isinstance(part, CAST_MODULES)]
    weights = {part: part._parameters.get("weight") for part in parts}  # None if computed from other parameters
    return {part: w for part, w in weights.items() if w is not None and _is_float32_parameter(w)}


def _version(weight: Tensor) -> tuple[int, int]:
    """A value that changes with most writes to ``weight``, and with its memory address."""
    return weight._version, weight.data_ptr()


def _is_float32_parameter(weight: Tensor) -> bool:
    return isinstance(weight, nn.Parameter) and weight.dtype == torch.float32
