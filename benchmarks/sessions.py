"""What a second is worth on the machine and at the day of a run: seconds of different ones are no measure of a method.

Where a suite goes on with another commit or on another processor, plain training is run again beside it, as its clock:
a contender then has the speed-up that it has over its clock. A session is a commit and a processor.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


def fastest(results: Iterable[Mapping[str, Any]]) -> dict[Session, float]:
    """The least seconds of each session."""
    found: dict[Session, float] = {}
    for result in results:
        took = result["process_seconds"]
        found[session(result)] = min(took, found.get(session(result), took))
    return found


def clocks(folder: Path, *, dirty: bool) -> dict[tuple[str, str], dict[Session, float]]:
    """Seconds of plain training by task and length, and session: the least of its seeds.

    Args:
        folder: That of the results.
        dirty: Whether those of files that were not committed count too.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted((folder / CLOCKS).glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if dirty or not result["dirty"]:
            found[result["spec"]["task"], result["spec"]["length"]].append(result)
    return {key: fastest(results) for key, results in found.items()}


@dataclass(frozen=True)
class Reference:
    """What seconds are multiplied by, to be those beside the plain runs that all are compared with.

    Attributes:
        own: Seconds of the full plain runs by session: the least of each.
        counted: Seconds with which plain training counts in the end.
        clocks: Seconds of plain training beside other sessions.
    """

    own: Mapping[Session, float]
    counted: float
    clocks: Mapping[Session, float]

    def factor(self, run: Mapping[str, Any]) -> float:
        """That of ``run``: by its own session, else by what there is of its processor.

        Raises:
            ValueError: plain training was never run on that processor.
        """
        at = session(run)
        if at in self.own:
            return min(self.own.values()) / self.own[at]
        if at in self.clocks:
            return self.counted / self.clocks[at]
        for known, whole in ((self.own, min(self.own.values())), (self.clocks, self.counted)):
            same = [took for (_, processor), took in known.items() if processor == at[1]]
            if same:
                return whole / min(same)
        what = "{contender!r} of {task}, {length},".format(**run["spec"])
        raise ValueError(
            f"{what} was run on {at[1]!r}, plain training was not: its "
            "seconds tell nothing. Run a contender of it there anew, and plain training is run beside it."
        )
