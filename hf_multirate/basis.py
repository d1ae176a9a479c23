"""What a course of drift was made from, to see whether it still holds."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Basis:
    """Tensors that have to be the same objects, and values that have to be equal.

    Attributes:
        objects: Parameters and what the optimizer keeps for them. They are held, so that no other object gets the
            address of one.
        values: Settings of the group, step counts, layouts.
    """

    objects: Sequence[object]
    values: Sequence[Any]

    def same(self, other: Basis | None) -> bool:
        """Whether nothing has changed since ``other``."""
        if other is None or len(self.objects) != len(other.objects) or self.values != other.values:
            return False
        return all(map(operator.is_, self.objects, other.objects))
