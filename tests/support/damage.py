"""Ways to damage a file, and to change what is in the files of a checkpoint as if it had been written so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_multirate.trainer.checkpoint_files import SavedState, read_saved, write_saved


Change = Callable[[bytes], bytes]

NESTED = b"[" * 100_000 + b"]" * 100_000

TEXTS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(200),
    "list": b"[]",
    "null": b"null",
    "dictionary": b"{}",
    "number": b"3",
    "nested": NESTED,
    "not UTF-8": b'{"a": "\xff"}',
    "digits": b"9" * 5000,
}
"""What stands in a file instead of what was written."""


def mutations(size: int, number: int) -> Iterator[tuple[str, Change]]:
    """Cuts, and flips of single bytes, spread over a file of ``size`` bytes; the same ones at every call."""
    for i in range(number):
        place = (2 * i + 1) * size // (2 * number)
        yield f"cut at {place}", lambda data, place=place: data[:place]
        yield (
            f"flip at {place}",
            lambda data, place=place, i=i: data[:place] + bytes([data[place] ^ (1 << i % 8)]) + data[place + 1 :],
        )


def damage(path: Path, change: Change) -> None:
    path.write_bytes(change(path.read_bytes()))


def rewrite(path: Path, change: Callable[[Any], Any], **settings: Any) -> SavedState:
    """Write the two files of a checkpoint again, with ``change`` of their state and with other ``settings``."""
    saved = read_saved(path)
    assert saved is not None
    step = int(path.parent.name.rpartition("-")[2])
    given = {"step": step, "skipped_steps": saved.skipped_steps, "config": saved.config} | settings
    write_saved(path, state=change(saved.state), **given)
    return saved
