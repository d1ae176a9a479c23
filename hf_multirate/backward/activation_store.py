"""Where the activation cache keeps the outputs of rows: an interface, and the store in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from torch import Tensor


logger = logging.getLogger(__name__)

GIGABYTE = 10**9

OVERHEAD = 250
"""Bytes that a row takes in memory besides its values: the key, the tensor and the entry of the dictionary."""


class ActivationStore:
    """Keeps a tensor for each key, up to a size.

    Args:
        limit: Largest size in bytes.
    """

    place = "memory"

    def __init__(self, limit: float) -> None:
        self.limit = int(limit)
        self.full = False
        """Whether a row was not kept because the store is full."""

    @property
    def rows(self) -> int:
        """Number of kept rows."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Size of the kept rows in bytes."""
        raise NotImplementedError

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """The tensor of each key, on the CPU; None for a key that is not kept. They must not be changed."""
        raise NotImplementedError

    def put(self, rows: Iterable[tuple[bytes, Tensor]]) -> None:
        """Keep tensors. Once the store is full, new ones are left out."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget the rows that other weights have made."""

    def close(self) -> None:
        """Release everything."""

    def _warn_full(self, reason: str = "") -> None:
        if not self.full:
            self.full = True
            logger.warning(
                "the activation cache in %s is full with %d rows, %.3g GB%s. Further rows are not kept, and run "
                "through the whole model. Raise activation_cache_gb to keep more.",
                self.place, self.rows, self.size / GIGABYTE, reason,
            )  # fmt: skip


class MemoryStore(ActivationStore):
    """Keeps rows in the memory of the host, in a dictionary."""

    def __init__(self, limit: float) -> None:
        super().__init__(limit)
        self._rows: dict[bytes, Tensor] = {}
        self._bytes = 0

    @property
    def rows(self) -> int:
        """Number of kept rows."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """Size of the kept rows in bytes."""
        return self._bytes

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See `ActivationStore`."""
        return [self._rows.get(key) for key in keys]

    def put(self, rows: Iterable[tuple[bytes, Tensor]]) -> None:
        """See `ActivationStore`."""
        for key, row in rows:
            size = row.numel() * row.element_size() + OVERHEAD
            if self._bytes + size > self.limit:
                self._warn_full()
                return
            if key not in self._rows:
                self._rows[key] = row.clone()  # a view would keep the whole batch
                self._bytes += size

    def clear(self) -> None:
        """See `ActivationStore`."""
        self._rows.clear()
        self._bytes, self.full = 0, False

    def close(self) -> None:
        """See `ActivationStore`."""
        self._rows = {}
