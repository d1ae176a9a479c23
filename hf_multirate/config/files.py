"""Atomic writing of files, and reading of JSON files with checks."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


MAX_DEPTH = 32
"""Maximum nesting of a JSON file, far more than in any file of this package."""


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically: an interruption leaves either the old or the new content.

    ``write`` fills a temporary file in the same folder, which then replaces ``path``. The temporary name is unique,
    so several processes may write into one folder.
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
    """Flush the entries of ``folder`` to disk, if the file system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 with `write_whole`; characters that cannot be encoded become question marks."""
    write_whole(path, lambda file: file.write(text.encode("utf-8", errors="replace")))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file cannot be read, is not valid JSON, or is nested too deeply. The message contains only the
            reason; callers add the name of the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror or error})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:  # from decoding UTF-8 or JSON
        raise ValueError(f"it is not valid JSON ({error})") from None
    if _depth(value) > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    return value


def _depth(value: Any) -> int:
    """Nesting of lists and dictionaries, counted up to `MAX_DEPTH` + 1."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            item
            for container in level
            if isinstance(container, (list, dict))
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        depth += bool(level)
    return depth
