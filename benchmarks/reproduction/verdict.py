"""A verdict on a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


CONFIRMED, IN_PART, NOT_CONFIRMED = "confirmed", "confirmed in part", "not confirmed"
UNDECIDED, MISSING = "undecided", "not measured yet"


@dataclass(frozen=True)
class Verdict:
    """One of the words above, and the numbers."""

    word: str
    numbers: str = ""


def graded(holds: Sequence[bool], numbers: Sequence[str]) -> Verdict:
    """Confirmed if all hold, in part if some do, and missing if there is none."""
    if not holds:
        return Verdict(MISSING)
    word = CONFIRMED if all(holds) else IN_PART if any(holds) else NOT_CONFIRMED
    return Verdict(word, "; ".join(numbers))
