"""Values in the logs of Trainer: the default selection, valid keys, and a bounded number of entries per block."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping


PREFIX = "multirate/"
"""Prefix of all log keys of this package."""

BLOCK = f"{PREFIX}loss_decrease"
"""Prefix of the log keys of single blocks."""

SPEEDUP = f"{PREFIX}speedup"

DEFAULT_KEYS = frozenset(
    {SPEEDUP}
    | {f"{PREFIX}{key}" for key in ("seconds_full_step", "seconds_fast_step", "speedup_predicted", "grad_norm_full")}
)
"""Keys that are logged by default: seconds per step, speed-ups and a gradient norm to compare with other runs.

With ``multirate/phase``, which is always logged, these are six.
"""

INVALID, LEVELS = re.compile(r"[^\w\-. ]", re.ASCII), 2
"""Characters that some dashboards reject in a part of a key, and the number of slashes in a key."""

BLOCK_ENTRIES = 1000
"""Smallest number of entries with values of blocks in the record of a long run; the largest is twice as many."""


def default_values(values: Mapping[str, float], *, with_speedup: bool) -> dict[str, float]:
    """The part of ``values`` that is logged by default, with or without the speed-up."""
    keys = DEFAULT_KEYS if with_speedup else DEFAULT_KEYS - {SPEEDUP}
    return {key: value for key, value in values.items() if key in keys}


def with_valid_keys(values: Mapping[str, float]) -> dict[str, float]:
    """``values`` under keys that all dashboards accept; MLflow raises an error for other characters."""
    renamed: dict[str, float] = {}
    for key, value in values.items():
        valid = "/".join(INVALID.sub("_", part) for part in key.split("/", LEVELS))
        while valid in renamed:  # two module names may differ only in a replaced character
            valid += "_"
        renamed[valid] = value
    return renamed


class BlockEntries:
    """Limits the number of log entries with values of blocks, which a long run with many blocks would fill up."""

    def __init__(self) -> None:
        self._entries: list[MutableMapping[str, float]] = []
        self._number, self._stride = 0, 1

    def add(self, entry: MutableMapping[str, float]) -> None:
        """Add an entry. It keeps its values of blocks, or they are removed from it."""
        if not any(key.startswith(BLOCK) for key in entry):
            return
        self._number += 1
        if (self._number - 1) % self._stride:
            _remove_block_values(entry)
            return
        self._entries.append(entry)
        if len(self._entries) > 2 * BLOCK_ENTRIES:
            for other in self._entries[1::2]:
                _remove_block_values(other)
            del self._entries[1::2]
            self._stride *= 2


def _remove_block_values(entry: MutableMapping[str, float]) -> None:
    for key in [key for key in entry if key.startswith(BLOCK)]:
        del entry[key]
