"""Let AdaLoRA allocate ranks at fast steps, where idle adapters have no gradient."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_multirate.model.step_part import StepPart


class SensitivityOfLive(StepPart):
    """``RankAllocator.update_ipt`` of PEFT for parameters with a gradient; others keep the importance that they had.

    A copy or a pickle of the allocator has the method that it had before.

    Args:
        allocator: The rank allocator, which has this as its own ``update_ipt`` until `close`.
    """

    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator
        self._before = vars(allocator).get("update_ipt")
        self._update = allocator.update_ipt
        vars(allocator)["update_ipt"] = self

    def __call__(self, model: nn.Module) -> None:
        """Update the importance of parameters of ``model``."""
        self._update(_WithGradient(model))

    def __reduce__(self) -> tuple[Any, ...]:
        """See `object.__reduce__`."""
        if self._before is None:
            return getattr, (self._allocator, "update_ipt")
        return operator.getitem, ([self._before], 0)

    def close(self) -> None:
        """Leave the allocator as it was."""
        own = vars(self._allocator)
        if own.get("update_ipt") is not self:
            return
        if self._before is None:
            del own["update_ipt"]
        else:
            own["update_ipt"] = self._before


class _WithGradient:
    """A view of the parameters that have a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter


def allocators_of(model: nn.Module) -> list[Any]:
    """Rank allocators of AdaLoRA in ``model``."""
    from peft import AdaLoraModel

    found = (vars(part).get("rankallocator") for part in model.modules() if isinstance(part, AdaLoraModel))
    return [allocator for allocator in found if allocator is not None]
