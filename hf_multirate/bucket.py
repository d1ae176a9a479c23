"""What is moved together: parameters of one rate group in one group of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hf_multirate.basis import Basis
from hf_multirate.distributed.shards import total
from hf_multirate.drift import DriftRule
from hf_multirate.groups import RateGroup
from hf_multirate.trust import DriftTrust


@dataclass
class Bucket:
    """The parameters of one rate group that share a torch parameter group, with their drift rule."""

    index: int
    rate_group: RateGroup
    torch_group: int
    parameters: list[nn.Parameter]
    rule: DriftRule
    trust: DriftTrust
    before: list[Tensor] = field(default_factory=list)
    course: Callable[[float], None] | None = None
    """What drifts the parameters until their next step, or until its basis changes."""
    basis: Basis | None = None
    """What the course was made from."""
    levels: dict[Tensor, int] = field(default_factory=dict)

    def slopes(self, stepped: Sequence[nn.Parameter], group: Mapping[str, Any], scale: float) -> dict[Tensor, float]:
        """Inner products of fresh gradients with last updates, all fetched from the device at once.

        Args:
            stepped: Those of the parameters that have a gradient.
            group: The group of the optimizer.
            scale: What the gradients are multiplied with.
        """
        found = self.rule.slopes(stepped, group)
        known = [(p, slope) for p, slope in zip(stepped, found, strict=True) if slope is not None]
        if not known:
            return {}
        sums = total([slope for _, slope in known], [p for p, _ in known]).tolist()
        return {p: slope / scale for (p, _), slope in zip(known, sums, strict=True)}
