"""Figures in the logs of Trainer: which of them by default, under which keys, and means that do not grow."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping


PREFIX = "multirate/"
"""Prefix of all figures in the logs."""

BLOCK = f"{PREFIX}loss_decrease"
"""Prefix of the figures of single blocks."""

SPEEDUP = f"{PREFIX}speedup"

BRIEF = frozenset(
    {SPEEDUP}
    | {f"{PREFIX}{key}" for key in ("seconds_full_step", "seconds_fast_step", "speedup_predicted", "grad_norm_full")}
)
"""Figures in the logs by default: what a step costs, what the run gains, and a norm to compare with other runs.

With the phase, which is logged beside ``loss`` and ``grad_norm``, these are six.
"""

INVALID, LEVELS = re.compile(r"[^\w\-. ]", re.ASCII), 2
"""Characters that some dashboard refuses in a part of a key, and the slashes of a key: before a name and its block."""

DETAILED = 1000
"""Entries with figures of blocks that a record keeps at least, spread over the run; twice as many at most."""


def brief(figures: Mapping[str, float], *, with_speedup: bool) -> dict[str, float]:
    """The figures that are logged by default; the speed-up only if it means something yet."""
    kept = BRIEF if with_speedup else BRIEF - {SPEEDUP}
    return {key: value for key, value in figures.items() if key in kept}


def with_valid_keys(figures: Mapping[str, float]) -> dict[str, float]:
    """``figures`` under keys that all dashboards take: MLflow ends a run at other characters."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        valid = "/".join(INVALID.sub("_", part) for part in key.split("/", LEVELS))
        while valid in found:  # two names of modules may differ in such a character alone
            valid += "_"
        found[valid] = value
    return found


class Detailed:
    """Entries of a record with figures of blocks. Each has some for every block, so a long run keeps part of them."""

    def __init__(self) -> None:
        self._entries: list[MutableMapping[str, float]] = []
        self._number, self._stride = 0, 1

    def note(self, entry: MutableMapping[str, float]) -> None:
        """One more entry, which keeps its figures of blocks or loses them."""
        if not any(key.startswith(BLOCK) for key in entry):
            return
        self._number += 1
        if (self._number - 1) % self._stride:
            _strip(entry)
            return
        self._entries.append(entry)
        if len(self._entries) > 2 * DETAILED:
            for other in self._entries[1::2]:
                _strip(other)
            del self._entries[1::2]
            self._stride *= 2


def _strip(entry: MutableMapping[str, float]) -> None:
    for key in [key for key in entry if key.startswith(BLOCK)]:
        del entry[key]
