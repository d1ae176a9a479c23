"""Rank allocation of AdaLoRA at fast steps, where idle adapters have no gradient."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_multirate.model.step_part import StepPart


class AdaLoraUpdate(StepPart):
    """Replaces ``RankAllocator.update_ipt`` of PEFT by a version for the parameters with a gradient.

    Parameters without a gradient keep their importance. Copies and pickles of the allocator have the original method.

    Args:
        allocator: The rank allocator. This object is its ``update_ipt`` until `close`.
    """

    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator
        self._before = vars(allocator).get("update_ipt")
        self._update = allocator.update_ipt
        vars(allocator)["update_ipt"] = self

    def __call__(self, model: nn.Module) -> None:
        """Update the importance of the parameters of ``model`` that have a gradient."""
        self._update(_ParametersWithGradient(model))

    def __reduce__(self) -> tuple[Any, ...]:
        """See `object.__reduce__`."""
        if self._before is None:
            return getattr, (self._allocator, "update_ipt")
        return operator.getitem, ([self._before], 0)

    def close(self) -> None:
        """Restore the original method of the allocator."""
        attributes = vars(self._allocator)
        if attributes.get("update_ipt") is not self:
            return
        if self._before is None:
            del attributes["update_ipt"]
        else:
            attributes["update_ipt"] = self._before


class _ParametersWithGradient:
    """A view of a model that lists only the parameters with a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter


def rank_allocators(model: nn.Module) -> list[Any]:
    """The rank allocators of the AdaLoRA adapters in ``model``."""
    from peft import AdaLoraModel

    allocators = (vars(part).get("rankallocator") for part in model.modules() if isinstance(part, AdaLoraModel))
    return [allocator for allocator in allocators if allocator is not None]
