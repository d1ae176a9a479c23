"""Files of one JSON value a line that are only appended to, and survive a process that is killed while it writes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines at the end, all at once. Half a last line of an earlier process is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        complete, last = _split_last(file.read())
        file.truncate(len(complete))
        kept = last + b"\n" if _parsed(last) is not None else b""
        file.write(kept + "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a file. Half a last line is left out, with a message on standard error.

    Raises:
        ValueError: a line that is not the last one cannot be read.
    """
    complete, last = _split_last(path.read_bytes())
    lines = complete.splitlines()
    if _parsed(last) is not None:
        lines.append(last)
    elif last:
        print(
            f"{path}: the last line is incomplete, as after a process that was killed while it wrote. The line is "
            "dropped.",
            file=sys.stderr,
        )
    values = [_parsed(line) for line in lines]
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object. Restore the file.")
    return values


def _split_last(content: bytes) -> tuple[bytes, bytes]:
    """All lines that end, and the rest after the last of them."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _parsed(line: bytes) -> Any:
    """The value of a JSON line; None if it is empty or incomplete."""
    try:
        return json.loads(line)
    except ValueError:
        return None
