"""The activation cache on disk: an LMDB database that several processes and later runs share."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from hf_multirate.backward.activation_store import GIGABYTE, ActivationStore
from hf_multirate.config.validation import reason


MODEL = b"model"
"""Key of the entry that says which model has made the rows."""

SPARE = 2**24
"""Bytes that must be free on the disk besides the cache itself."""

CHECKSUM = struct.Struct("<Q")

CREATE = "Give another folder with activation_cache_dir, or use activation_cache='memory'."


class DiskStore(ActivationStore):
    """Keeps rows in an LMDB database. Readers wait for nobody, and writers of several processes take turns.

    Args:
        folder: Folder of the database; it is made if it does not exist.
        limit: Largest size in bytes.
        model: Fingerprint and name of the model that makes the rows.

    Raises:
        ImportError: the package lmdb is missing.
        ValueError: the folder cannot be written, belongs to another model, or its disk has not enough space.
    """

    def __init__(self, folder: str, limit: float, model: dict[str, str]) -> None:
        super().__init__(limit)
        self._lmdb = _lmdb()
        self._folder, self.place = folder, f"the folder {folder}"
        self._environment = self._open(model)

    def _open(self, model: dict[str, str]) -> Any:
        try:
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._check_space()
            # Without sync a crash of the machine may damage rows: each has a checksum.
            environment = self._lmdb.open(
                self._folder, map_size=max(self.limit, 2**20), sync=False, max_readers=1024, readahead=False
            )
            with environment.begin(write=True) as transaction:
                found = transaction.get(MODEL)
                if found is None:
                    transaction.put(MODEL, json.dumps(model).encode())
        except self._lmdb.MapFullError:
            return environment  # the rows of an earlier run with a larger limit
        except (OSError, self._lmdb.Error) as error:
            raise ValueError(
                f"the activation cache cannot use the folder {self._folder!r} ({reason(error)}). {CREATE}"
            ) from error
        if found is not None and (other := json.loads(bytes(found))) != model:
            environment.close()
            raise ValueError(
                f"the activation cache in {self._folder!r} belongs to another model: {_short(other)}, this one is "
                f"{_short(model)}. The fingerprint covers weights and configuration of the frozen modules. Give "
                "another folder with activation_cache_dir, or delete this one."
            )
        return environment

    def _check_space(self) -> None:
        data = Path(self._folder, "data.mdb")
        used = data.stat().st_blocks * 512 if data.exists() else 0
        free = shutil.disk_usage(self._folder).free
        if used + free < self.limit + SPARE:
            raise ValueError(
                f"the activation cache may take {self.limit / GIGABYTE:.3g} GB in the folder {self._folder!r}, but "
                f"its disk has only {free / GIGABYTE:.3g} GB left. Lower activation_cache_gb, or give a folder on "
                "another disk with activation_cache_dir."
            )

    @property
    def rows(self) -> int:
        """Number of kept rows."""
        return max(0, int(self._environment.stat()["entries"]) - 1)

    @property
    def size(self) -> int:
        """Bytes of the pages in use."""
        pages = self._environment.info()["last_pgno"] + 1
        return int(pages * self._environment.stat()["psize"])

    def get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        """See `ActivationStore`. A damaged row counts as missing."""
        try:
            return self._get(keys)
        except self._lmdb.MapResizedError:  # another process has a larger limit
            self._environment.set_mapsize(0)
            return self._get(keys)

    def _get(self, keys: Sequence[bytes]) -> list[Tensor | None]:
        with self._environment.begin(buffers=True) as transaction:
            return [_unpacked(transaction.get(key)) for key in keys]

    def put(self, rows: Iterable[tuple[bytes, Tensor]]) -> None:
        """See `ActivationStore`."""
        if self.full:
            return
        packed = [(key, _packed(row)) for key, row in rows]
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in packed:
                    transaction.put(key, value, overwrite=True)
        except self._lmdb.MapResizedError:
            self._environment.set_mapsize(0)
        except self._lmdb.MapFullError:
            self._warn_full()
        except (OSError, self._lmdb.Error) as error:
            if errno.ENOSPC not in _codes(error) and os.strerror(errno.ENOSPC) not in str(error):
                raise
            self._warn_full(": no space is left on the disk")

    def close(self) -> None:
        """See `ActivationStore`."""
        self._environment.sync(True)
        self._environment.close()


def _codes(error: BaseException) -> set[Any]:
    return {error.errno} if isinstance(error, OSError) else set(error.args)


def _short(model: dict[str, str]) -> str:
    return f"{model.get('name')} ({model.get('fingerprint', '')[:8]})"


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise ImportError(
            "activation_cache='disk' needs the package lmdb, which is not installed. From a clone, run "
            "pip install \".[cache]\", or use activation_cache='memory'."
        ) from error
    return lmdb


def _packed(row: Tensor) -> bytes:
    """A tensor as bytes: checksum, type and sizes, values."""
    head = f"{str(row.dtype).removeprefix('torch.')},{','.join(map(str, row.shape))}".encode()
    body = row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if row.numel() else b""
    rest = bytes([len(head)]) + head + body
    return CHECKSUM.pack(xxh3_64_intdigest(rest)) + rest


def _unpacked(value: Any) -> Tensor | None:
    if value is None or len(value) <= CHECKSUM.size:
        return None
    rest = memoryview(value)[CHECKSUM.size :]
    if CHECKSUM.unpack_from(value)[0] != xxh3_64_intdigest(rest):
        return None
    begin = 1 + rest[0]
    name, *sizes = bytes(rest[1:begin]).decode().split(",")
    dtype: torch.dtype = vars(torch)[name]
    shape = [int(size) for size in sizes if size]
    if begin == len(rest):
        return torch.empty(shape, dtype=dtype)
    # Copied, because the memory of the database is valid only within the transaction.
    copied = np.frombuffer(rest[begin:], dtype=np.uint8).copy()
    return torch.from_numpy(copied).view(dtype).reshape(shape)
