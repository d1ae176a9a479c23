"""A cell is the smallest measurement that is kept: run one after the other, as long as time is left."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import _dynamo

from benchmarks.gpu.models import NETWORKS, Network
from benchmarks.gpu.place import Cpu, SkippedError
from benchmarks.gpu.results import FAILED, MEASURED, SKIPPED, GpuResults


class BrokenDeviceError(RuntimeError):
    """After an error on the device, this process can measure nothing more."""


@dataclass(frozen=True)
class Bench:
    """What every measurement needs.

    Attributes:
        place: The device.
        tiny: Whether networks have a few thousand weights, to try the command out.
        deadline: Time of `time.monotonic` at which the part ends.
        options: The command line.
    """

    place: Cpu
    tiny: bool
    deadline: float
    options: Any = None

    def network(self, name: str) -> Network:
        """A network by name, or its tiny form."""
        return NETWORKS[name].tiny() if self.tiny else NETWORKS[name]

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def number(self, usual: int, tiny: int) -> int:
        """A number of steps or rounds."""
        return tiny if self.tiny else usual


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        part: Name of the part.
        name: Name within the part.
        seconds: What it takes on a GPU of the H100 class, rather too much than too little.
        measure: Makes the measurement, and returns plain values.
    """

    part: str
    name: str
    seconds: float
    measure: Callable[[Bench], dict[str, Any]]


def run_cells(
    cells: Sequence[Cell], bench: Bench, file: GpuResults, about: Mapping[str, Any], *, repeat: bool
) -> None:
    """Run the cells whose result is not in the file, in their order.

    Raises:
        BrokenDeviceError: the device has failed. The result of the cell is kept.
    """
    for cell in cells:
        if file.done(cell.part, cell.name, repeat=repeat):
            continue
        line = run_cell(cell, bench)
        file.append(line, about)
        words = line["reason"] or f"{line['seconds']:.1f} s"
        print(f"{cell.part}: {cell.name}: {line['status']}, {words}", flush=True)
        if line["broken"]:
            raise BrokenDeviceError(line["reason"])


def run_cell(cell: Cell, bench: Bench) -> dict[str, Any]:
    """The line of one cell. Memory is free again afterwards."""
    if cell.seconds > bench.left and not bench.tiny:
        return lacks_time(cell, f"takes about {cell.seconds:.0f} s, {max(0.0, bench.left):.0f} s were left")
    begun, values, broken = time.monotonic(), {}, False
    status, reason = MEASURED, None
    try:
        values = cell.measure(bench)
        bench.place.synchronize()
        json.dumps(values, allow_nan=False)  # what cannot be kept is an error of the cell
    except SkippedError as error:
        status, reason = SKIPPED, str(error)
    except torch.OutOfMemoryError:
        status, reason = SKIPPED, "out of memory"
    except Exception as error:  # whatever fails, the other cells are measured
        traceback.print_exc(file=sys.stderr)
        status, reason = FAILED, in_short(error)
        broken = "CUDA error" in str(error)
    if not broken:  # here, after the error and the frames that it keeps are gone
        _dynamo.reset()
        bench.place.free()
    return _line(cell, status, reason, values, time.monotonic() - begun) | {"broken": broken}


def lacks_time(cell: Cell, reason: str) -> dict[str, Any]:
    """The line of a cell that is run again the next time."""
    return _line(cell, SKIPPED, f"not enough time: {reason}", {}, 0.0) | {"again": True, "broken": False}


def crashed(cell: Cell, signal_number: int) -> dict[str, Any]:
    """The line of a cell that has ended its process by a signal."""
    return _line(cell, FAILED, f"ended the process by signal {signal_number}", {}, 0.0) | {"broken": True}


def _line(cell: Cell, status: str, reason: str | None, values: dict[str, Any], seconds: float) -> dict[str, Any]:
    found = {"part": cell.part, "cell": cell.name, "status": status, "reason": reason, "again": False}
    return {**found, "seconds": round(seconds, 2), "values": values}


def in_short(error: Exception) -> str:
    """Type and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
