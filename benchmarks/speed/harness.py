"""The harness of all speed measurements: kinds of steps in turn, seconds of each, and ratios round by round."""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.jsonl import append_lines
from benchmarks.tables import table, with_quartiles


class Timer:
    """Seconds of each kind of step, in the order in which they were measured.

    Args:
        clock: Returns seconds. `time.process_time` leaves out what other processes take, and is for one process.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._clock = clock

    @contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Measure a block of code, and count it as ``kind``."""
        start = self._clock()
        yield
        self.add(kind, self._clock() - start)

    def add(self, kind: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere, such as in another process."""
        self.seconds[kind].append(seconds)


def interleave(blocks: Mapping[str, Callable[[int], None]], rounds: int, timer: Timer, warm_up: int = 1) -> None:
    """Run each block once a round, in an order that is drawn for every other round and reversed in the next one.

    A machine that grows slower then favours no block, and no block always runs after the same other one, which decides
    how much memory is at hand. The draw is the same in all processes.

    Args:
        blocks: By name. Each is called with the number of the round and measures itself with ``timer``.
        rounds: Rounds that count.
        timer: The timer of the blocks. Its measurements of warm-up rounds are dropped.
        warm_up: Rounds before those that count.
    """
    drawn, order = random.Random(0), list(blocks)
    for number in range(warm_up + rounds):
        order = order[::-1] if number % 2 else drawn.sample(list(blocks), len(blocks))
        for name in order:
            blocks[name](number)
        if number == warm_up - 1:
            timer.seconds.clear()


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Quotients, round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


@dataclass(frozen=True)
class Measurement:
    """The measurements of a case.

    Attributes:
        seconds: All values of each kind of step.
        ratios: Quotients of kinds, round by round.
        more: Further plain values that belong to a record.
    """

    seconds: Mapping[str, Sequence[float]]
    ratios: Mapping[str, Sequence[float]]
    more: Mapping[str, Any]

    def table(self) -> str:
        """Medians and quartiles."""
        rows = [[f"seconds: {name}", with_quartiles(values, 4)] for name, values in self.seconds.items()]
        rows += [[name, with_quartiles(values)] for name, values in self.ratios.items()]
        return table(["measured", "median (quartiles)"], rows)


def add_record(parser: argparse.ArgumentParser) -> None:
    """The option for keeping a measurement."""
    parser.add_argument("--record", type=Path, help="file of JSON lines to which all values are added")


def report(measured: Measurement, options: argparse.Namespace) -> Measurement:
    """Print the table of a measurement, and keep it if ``--record`` is given."""
    print(measured.table())
    if options.record:
        asked = {name: value for name, value in vars(options).items() if name != "record"}
        at = {**machine.commit(options.record.parent, allow_dirty=True), **machine.hardware()}
        described = {**at, "versions": machine.versions()}
        key = machine.machine_id(described)
        run = {"kind": "run", "options": asked, **measured.more, "seconds": measured.seconds, "machine": key}
        append_lines(options.record, [{"kind": "machine", "id": key, **described}, run])
    return measured
