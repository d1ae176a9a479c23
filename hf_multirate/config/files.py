"""Files that are whole: written so that a kill leaves the old or the new one, and checked when they are read."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


DEEPEST = 32
"""Levels of nesting of a JSON file. No file of this package comes near it."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path``, and put it in the place of ``path`` when it is on the disk.

    The name of the file beside it is unique, so processes that share a folder do not meet.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Put the names in ``folder`` on the disk, where the file system knows how to."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; characters that UTF-8 does not have become question marks."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: the file cannot be read, holds no JSON, or is nested too deep. The message is the reason alone.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except ValueError as error:  # of the decoder of UTF-8, or of JSON
        raise ValueError(f"it is no JSON ({error})") from None
    if _depth(value) > DEEPEST:
        raise ValueError("it is nested too deep")
    return value


def _depth(value: Any) -> int:
    """Levels of nesting of lists and dictionaries, counted until there are more than `DEEPEST`."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [
            part
            for whole in level
            if isinstance(whole, (list, dict))
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        depth += bool(level)
    return depth
