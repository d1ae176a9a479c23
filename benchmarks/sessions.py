"""What a second is worth on the machine and at the day of a run: seconds of different ones are no measure of a method.

Where a suite goes on with another commit or on another processor, plain training is run again beside it, as its clock.
Seconds are then those that the run would have taken beside the plain runs that all are compared with.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any


Session = tuple[str, str]
"""A commit and a processor."""

CLOCKS = "clocks"
"""Folder of the plain runs that serve as clocks, within that of the results."""


def session(result: Mapping[str, Any]) -> Session:
    """That of a result."""
    return result["commit"], result["hardware"]["processor"]


def clock_folder(out: Path, own: Session) -> Path:
    """Where the clocks of a session are."""
    return out / CLOCKS / re.sub(r"\W+", "_", f"{own[0][:7]} {own[1]}").strip("_")


def clocks(folder: Path) -> dict[tuple[str, str], dict[Session, float]]:
    """Seconds of plain training by task and length, and session: the least of its seeds."""
    found: dict[tuple[str, str], dict[Session, float]] = defaultdict(dict)
    for path in sorted((folder / CLOCKS).glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        known = found[result["spec"]["task"], result["spec"]["length"]]
        took = result["process_seconds"]
        known[session(result)] = min(took, known.get(session(result), took))
    return found


def seconds_of_plain(run: Mapping[str, Any], known: Mapping[Session, float]) -> float:
    """What plain training takes in the session of ``run``; in another one on the same processor if there is no clock.

    Args:
        run: A result.
        known: Seconds of plain training by session.

    Raises:
        ValueError: plain training was never run on that processor.
    """
    own = session(run)
    if own in known:
        return known[own]
    same = [took for (_, processor), took in known.items() if processor == own[1]]
    if not same:
        spec = run["spec"]
        raise ValueError(
            f"{spec['contender']!r} of {spec['task']}, {spec['length']}, was run on {own[1]!r}, plain training was "
            "not: its seconds tell nothing. Run a contender of it there anew, and plain training is run beside it."
        )
    return min(same)
