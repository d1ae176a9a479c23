"""Measure speed, memory and correctness on one GPU: one command, nine minutes, no network and no data.

    python -m benchmarks gpu                                # all parts, in the order of their importance
    python -m benchmarks gpu --parts runs memory --minutes 5
    python -m benchmarks gpu --parts equal_time             # needs the extra 'examples'
    python -m benchmarks report                             # docs/results/gpu.md from the results

Each part runs in a process of its own, and gets a share of the time. A part consists of cells, the most important
first. The result of a cell is kept at once, so a second call continues where the first one ended. What cannot be
measured is skipped, with the reason in the results. It needs torch, transformers, accelerate and peft beside the
package.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.commands import parser_of
from benchmarks.gpu import correctness, equal_time, kinds, memory, runs
from benchmarks.gpu.cells import Bench, BrokenDeviceError, Cell, crashed, lacks_time, run_cells
from benchmarks.gpu.page import page
from benchmarks.gpu.place import Cpu, place_of, require_device
from benchmarks.gpu.results import GpuResults, Line, about
from benchmarks.machine import ROOT


PARTS = {part.PART: part for part in (kinds, runs, memory, correctness, equal_time)}
SHARES = {"kinds": 33, "runs": 30, "memory": 11, "correctness": 25, "equal_time": 1}
"""Shares of the time that is left; what a part does not take is for those after it."""

ENVIRONMENTS: dict[str, Mapping[str, str]] = {"correctness": correctness.ENVIRONMENT}
OUT = ROOT / "benchmarks" / "results" / "gpu.jsonl"
GRACE = 10.0
"""Seconds after its deadline at which the process of a part is stopped."""

WRONG_INPUT = 2
"""Exit code after an error that another attempt would repeat."""

STOPPED = -1
"""In place of the exit code of a process that was stopped at the end of its time."""

ATTEMPTS = 3
"""Processes of a part that are started, if the device fails in one of them."""


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = parser_of("python -m benchmarks gpu", __doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    add("--minutes", type=float, default=9.0, help="time for all parts (default: 9)")
    add("--out", type=Path, default=OUT, help="file of the results (default: benchmarks/results/gpu.jsonl)")
    add("--page", type=Path, help="also write the page of the results to this file")
    add("--repeat", action="store_true", help="also repeat cells that failed or were skipped")
    add("--data-dir", type=Path, help="folder with data of equal_time; its two tasks need none")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying the command out")
    add("--tiny", action="store_true", help="networks of a few thousand weights, for trying the command out")
    add("--cells", nargs="+", metavar="TEXT", help="only cells with one of these texts in their name")
    add("--in-process", action="store_true", help="run the parts in this process")
    add("--until", type=float, help=argparse.SUPPRESS)  # end of a part, in seconds since the epoch
    options = parser.parse_args(argv)
    if (options.tiny or options.device == "cpu") and options.out == OUT:
        parser.error("--device cpu and --tiny try the command out: give a file for their results with --out.")
    return options


def shares_of(parts: Sequence[str], seconds: float) -> float:
    """Seconds for the first of ``parts``, of ``seconds`` for all of them."""
    return seconds * SHARES[parts[0]] / sum(SHARES[part] for part in parts)


def waiting(part: str, options: argparse.Namespace, *, repeat: bool) -> list[Cell]:
    """Cells of a part that are asked for and have no result."""
    file = GpuResults(options.out)
    wanted = [c for c in PARTS[part].cells() if not options.cells or any(text in c.name for text in options.cells)]
    return [cell for cell in wanted if not file.done(part, cell.name, repeat=repeat)]


def run_part(part: str, place: Cpu, options: argparse.Namespace, seconds: float) -> None:
    """Run the cells of a part in this process."""
    file = GpuResults(options.out)
    measured_on = about(options.out, place.describe())
    file.require_device(measured_on["device"])
    bench = Bench(place, options.tiny, time.monotonic() + seconds, options)
    run_cells(waiting(part, options, repeat=options.repeat), bench, file, measured_on, repeat=options.repeat)


def start_part(part: str, options: argparse.Namespace, seconds: float) -> None:
    """Run a part in a process of its own, which is stopped if it takes too long.

    A cell that ends the process has failed. What has no result at the end gets a line with the reason.
    """
    until = time.time() + seconds
    for _ in range(ATTEMPTS):
        if until <= time.time() or not waiting(part, options, repeat=options.repeat):
            break
        before = GpuResults(options.out).cells
        code = _process(part, options, until)
        if code == WRONG_INPUT:
            sys.exit(code)
        if code == 0:
            return
        if code < STOPPED:
            _keep_crash(part, options, before, -code)
    file = GpuResults(options.out)
    for cell in waiting(part, options, repeat=False):
        if (part, cell.name) not in file.cells:
            file.append_without_device(lacks_time(cell, "the process of the part ended before"))


def _keep_crash(
    part: str, options: argparse.Namespace, before: Mapping[tuple[str, str], Line], signal_number: int
) -> None:
    """Add a line for the cell at which a process ended: the first one that has no line of this process."""
    file = GpuResults(options.out)
    without = (
        cell
        for cell in waiting(part, options, repeat=options.repeat)
        if file.cells.get((part, cell.name)) == before.get((part, cell.name))
    )
    if cell := next(without, None):
        file.append_without_device(crashed(cell, signal_number))


def _process(part: str, options: argparse.Namespace, until: float) -> int:
    """Exit code of the process of a part: below `STOPPED` for a signal that others have sent."""
    words = ["--parts", part, "--until", str(until), "--out", str(options.out.resolve())]
    words += ["--device", options.device, "--in-process"]
    words += ["--tiny"] if options.tiny else []
    words += ["--repeat"] if options.repeat else []
    words += ["--cells", *options.cells] if options.cells else []
    words += ["--data-dir", str(options.data_dir.resolve())] if options.data_dir else []
    command = [sys.executable, "-m", "benchmarks", "gpu", *words]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(part), start_new_session=True)
    try:
        return process.wait(max(0.0, until - time.time()) + GRACE)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped at the end of its time", file=sys.stderr)
        return STOPPED
    finally:
        if process.poll() is None:  # its compiler has processes too
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(part: str) -> dict[str, str]:
    """Variables of the process of a part: one GPU, no network, and what the part needs."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    fixed = {"CUDA_VISIBLE_DEVICES": gpu, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **fixed, **ENVIRONMENTS.get(part, {})}


def run_parts(options: argparse.Namespace) -> None:
    """All parts that are asked for, in their order."""
    deadline = options.until or time.time() + max(GRACE, 60 * options.minutes - GRACE)
    parts = [part for part in PARTS if part in options.parts]
    place = place_of(options.device) if options.in_process else None
    for i, part in enumerate(parts):
        seconds = shares_of(parts[i:], deadline - time.time())
        if place is None:
            start_part(part, options, seconds)
        else:
            run_part(part, place, options, seconds)


def main(argv: list[str] | None = None) -> None:
    """Run the parts, and write the page if it is asked for."""
    options = parsed(argv)
    try:
        if not options.in_process:  # a GPU may serve one process at a time, so this one does not start CUDA
            require_device(options.device)
        run_parts(options)
    except BrokenDeviceError as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    if options.page:
        options.page.write_text(page(options.out), encoding="utf-8")
