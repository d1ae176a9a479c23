"""Reference seconds: what one step of each kind takes on real batches, on one thread of one machine.

Reference system time (Kaddour et al., *No Train No Gain*, NeurIPS 2023) charges a run the sum over kinds of steps of
their number times their seconds. So runs may go anywhere, side by side.

`benchmarks.budgets.timing` times the kinds, one after the other. A pass times each setting once, in turn, and the
baseline first; passes are repeated. One file for each task has one JSON line for each setting and pass. A pass that
was killed is continued by a new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.budgets.contenders import CONTENDERS, Contender
from benchmarks.jsonl import append_lines, read_lines
from benchmarks.machine import machine_id


KINDS = "kinds"
"""Folder of the reference seconds, in that of the results."""

PASSES = 5

BASELINE = "baseline"
"""Cost name of the baseline, which each pass times first."""

LIKE = 2.5
"""Largest ratio of the seconds of two passes of the baseline on one machine."""

ONE_MACHINE = "Reference seconds are of one machine: give another --out, or time all again in a new file."

HEAD_START = "head start"
READING = "reading"

Times = dict[str, dict[str, list[float]]]
"""Kind -> ``process_seconds`` and ``wall_seconds``, one value for each batch."""


def head_start_name(contender: Contender) -> str:
    """Cost name of a head start: its seconds depend on the model only, which adapters change."""
    return f"{HEAD_START}, {contender.setting.name if contender.family == 'lora' else BASELINE}"


@dataclass(frozen=True)
class Charge:
    """Seconds of one kind of step.

    Attributes:
        seconds: Reference seconds: process seconds, as a multiple of the baseline's in the same pass.
        quartiles: Lower and upper quartile over passes.
        wall_seconds: Median wall seconds.
    """

    seconds: float
    quartiles: tuple[float, float]
    wall_seconds: float


class KindsFile:
    """The timed settings of one task.

    Raises:
        ValueError: a line that is not the last one is damaged.
    """

    def __init__(self, folder: Path, task: str) -> None:
        self.path = folder / f"{task}.jsonl"
        self.task = task
        self.lines: list[dict[str, Any]] = []
        self.machines: dict[str, dict[str, Any]] = {}
        for line in read_lines(self.path) if self.path.exists() else []:
            if line["kind"] == "machine":
                self.machines[line["id"]] = line
            else:
                self.lines.append(line)

    def append(self, line: dict[str, Any], number: int, machine: dict[str, Any]) -> None:
        """Add what a setting took in pass ``number``.

        Raises:
            ValueError: other lines are of another processor, or took far less or far more seconds.
        """
        self._check_machine(machine)
        if line["setting"] == BASELINE:
            self._check_speed(line)
        key = machine_id(machine)
        new = [] if key in self.machines else [{"kind": "machine", "id": key, **machine}]
        whole = {"kind": "times", "pass": number, "machine": key, **line}
        append_lines(self.path, [*new, whole])
        self.machines[key] = {"kind": "machine", "id": key, **machine}
        self.lines.append(whole)

    def _check_machine(self, machine: dict[str, Any]) -> None:
        for known in self.machines.values():
            # Older files have no instructions. The names of processors of virtual machines may lack the model.
            for name in ("processor", "instructions"):
                there, here = known.get(name), machine.get(name)
                if there is not None and there != here:
                    raise ValueError(f"{self.path} has seconds of {there!r}, and this is {here!r}. {ONE_MACHINE}")

    def _check_speed(self, line: dict[str, Any]) -> None:
        """Compare a pass of the baseline with those before."""
        before = [self._only(known).mean() for known in self.passes(BASELINE).values()]
        ratio = self._only(line).mean() / np.median(before) if before else 1.0
        if not 1 / LIKE <= ratio <= LIKE:
            raise ValueError(
                f"a step of the baseline takes {ratio:.1f} times the seconds that {self.path} has. Something else "
                f"runs on this machine, or it is another one. {ONE_MACHINE}"
            )

    def passes(self, setting: str) -> dict[int, dict[str, Any]]:
        """Lines of a setting by pass. Passes without the baseline do not count."""
        complete = {line["pass"] for line in self.lines if line["setting"] == BASELINE}
        return {line["pass"]: line for line in self.lines if line["setting"] == setting and line["pass"] in complete}

    @property
    def rows(self) -> int:
        """Rows of the task to train on."""
        return int(self._line(BASELINE)["rows"])

    def next_pass(self) -> int:
        """Number of a new pass."""
        return 1 + max((line["pass"] for line in self.lines), default=0)

    def groups(self, setting: str) -> tuple[list[str], tuple[int, ...]]:
        """Names and periods of the rate groups of a setting.

        Raises:
            KeyError: the setting was not timed.
        """
        names, periods = zip(*self._line(setting)["groups"], strict=True)
        return list(names), tuple(periods)

    def kinds(self, setting: str) -> list[str]:
        """Timed kinds of a setting."""
        return list(self._line(setting)["times"])

    def settings(self) -> list[str]:
        """Timed settings, in the order of the first pass."""
        return list(dict.fromkeys(line["setting"] for line in self.lines))

    def _line(self, setting: str) -> dict[str, Any]:
        found = self.passes(setting)
        if not found:
            raise KeyError(f"{self.path} has no seconds of {setting!r}: run `python -m benchmarks accuracy` on it.")
        return next(iter(found.values()))

    @property
    def unit(self) -> str:
        """Seconds that are charged: of the process, or for a GPU those of the wall clock."""
        on_gpu = any("device" in machine for machine in self.machines.values())
        return "wall_seconds" if on_gpu else "process_seconds"

    def _only(self, line: dict[str, Any]) -> Numbers:
        """Seconds of the one kind of the baseline, on each batch."""
        (times,) = line["times"].values()
        return np.array(times[self.unit])

    def charge(self, setting: str, kind: str) -> Charge:
        """Seconds of one kind of a setting.

        On each batch the seconds are divided by those of the baseline in the same pass, which removes slow phases of
        the machine. The median over passes is multiplied by the baseline's median, and batches are averaged.

        Raises:
            KeyError: the setting or the kind was not timed.
        """
        self._line(setting)
        lines, baseline = self.passes(setting), self.passes(BASELINE)
        typical = np.median([self._only(line) for line in baseline.values()], axis=0)
        shares, of_passes = [], []
        for number, line in lines.items():
            taken, unit = np.array(line["times"][kind][self.unit]), self._only(baseline[number])
            if len(taken) == 1:  # a head start
                unit = unit.mean(keepdims=True)
            shares.append(taken / unit)
            of_passes.append(taken.mean() if setting == BASELINE else (shares[-1] * _like(typical, taken)).mean())
        low, high = np.quantile(of_passes, [0.25, 0.75])
        walls = [np.mean(line["times"][kind]["wall_seconds"]) for line in lines.values()]
        middle = np.median(shares, axis=0)
        return Charge(
            float((middle * _like(typical, middle)).mean()), (float(low), float(high)), float(np.median(walls))
        )


Numbers = np.ndarray[Any, np.dtype[Any]]


def _like(typical: Numbers, seconds: Numbers) -> Numbers:
    """The baseline's seconds of each batch, or their mean for a single value."""
    return typical if len(seconds) > 1 else typical.mean(keepdims=True)


def to_time(contenders: Sequence[Contender], file: KindsFile, passes: int) -> Iterator[tuple[int, str, str]]:
    """What is missing in ``file``, one pass after the other: pass, function (``steps`` or ``head start``), contender.

    Each pass begins with the baseline.
    """
    steps = {BASELINE: BASELINE, **{c.cost: c.name for c in contenders if not c.part_costs}}
    steps |= {cost: _timed_by(cost) for c in contenders for cost in c.part_costs if cost not in steps}
    starts = {head_start_name(c): c.name for c in contenders if c.head_start}
    first = file.next_pass()
    missing = {name: passes - len(file.passes(name)) for name in [*steps, *starts]}
    for number in range(max(missing.values())):
        yield first + number, "steps", BASELINE
        for name, left in missing.items():
            if left > number and name != BASELINE:
                yield first + number, "steps" if name in steps else HEAD_START, steps.get(name) or starts[name]


def _timed_by(cost: str) -> str:
    """Name of a contender whose steps give the seconds of a stage."""
    return next(name for name, contender in CONTENDERS.items() if contender.cost == cost)
