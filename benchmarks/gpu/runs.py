"""Part ``runs``: whole runs of Trainer and MultirateTrainer in turn, idle time of the device, host synchronisation."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from benchmarks.gpu.cells import Bench, Cell, in_short
from benchmarks.gpu.idle import busy, launch_seconds
from benchmarks.gpu.kinds import SETTINGS
from benchmarks.gpu.place import require_cuda
from benchmarks.gpu.steps import Trainee, kind_of, time_baseline, time_cycle, trainee
from benchmarks.gpu.syncs import syncs_of_run
from benchmarks.gpu.training import BASELINE, CONTENDERS, seconds_of_run
from benchmarks.speed.harness import Timer, interleave
from hf_multirate import Multirate


PART = "runs"
STEPS, WARM = 100, 12
TURNS = 2
IMAGE_WORKERS = 4
"""Processes that put batches of images together, which takes about as long as a step. Texts need none."""

SYNC_FIRST, SYNC_LAST = 16, 36
"""Host synchronisation is counted between these steps. The first eight have checksums of batches, for the record."""

BATCHES = (32, 8, 1, 16, 4, 2)
FAST = "last:1"
"""The setting whose fast steps are compared with full steps for each size of batch."""

TIMED_ROUNDS = 6


def cells() -> list[Cell]:
    """The cells, the most important first."""
    found = [Cell(PART, "BERT-base, 32 x 128, bf16", 45, partial(whole_runs, "BERT-base", None))]
    found.append(Cell(PART, "host synchronisation", 25, synchronisation))
    found.append(Cell(PART, "Llama 0.5 B, 8 x 1024, bf16", 60, partial(whole_runs, "Llama 0.5 B", None)))
    # Behind the whole runs, since a profiler may leave the host slower.
    found += [_launch_cell("BERT-base", batch) for batch in BATCHES]
    found += [_launch_cell("Llama 0.5 B", batch) for batch in (8, 1)]
    found.append(Cell(PART, "BERT-base, 8 x 128, bf16", 40, partial(whole_runs, "BERT-base", 8)))
    found.append(Cell(PART, "ViT-B/16, 32 x 197, bf16", 50, partial(whole_runs, "ViT-B/16", None)))
    return found


def _launch_cell(name: str, batch: int) -> Cell:
    return Cell(PART, f"launches, {name}, batch {batch}", 10, partial(launches, name, batch))


def whole_runs(name: str, batch: int | None, bench: Bench) -> dict[str, Any]:
    """Seconds of runs of each contender, in turn; the second turn is in reversed order, and left out without time."""
    network = bench.network(name)
    network = network.with_batch(batch) if batch and not bench.tiny else network
    warm, steps = bench.number(WARM, 4), bench.number(STEPS, 8)
    settings = {
        "bf16": True,
        "dataloader_num_workers": IMAGE_WORKERS if network.family == "vit" and not bench.tiny else 0,
    }
    seconds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    begun = time.monotonic()
    for turn in range(TURNS):
        if turn and bench.left < 1.2 * (time.monotonic() - begun):
            break
        order = list(CONTENDERS)[:: -1 if turn else 1]
        for contender in order:
            taken = seconds_of_run(bench, network, CONTENDERS[contender], warm, steps, **settings)
            seconds[contender].append(round(taken, 6))
            bench.place.free()
    return {"network": name, "shape": network.shape, "steps": steps, "seconds": seconds}


def launches(name: str, batch: int, bench: Bench) -> dict[str, Any]:
    """Seconds, time in kernels, number of kernels and time to give out the work, of full and fast steps."""
    network = bench.network(name).with_batch(batch)
    trained, timer = trainee(bench, network, "bf16"), Timer()
    blocks = {
        "baseline": lambda _: time_baseline(trained, timer, 3),
        FAST: lambda _: time_cycle(trained, FAST, SETTINGS[FAST], timer),
    }
    interleave(blocks, bench.number(TIMED_ROUNDS, 2), timer)
    found = {"full": _occupied(trained, trained.step, timer.seconds["baseline"], bench)}
    with Multirate(SETTINGS[FAST]).attach(trained.called, trained.optimizer) as controller:
        fast = timer.seconds[f"{FAST}: {kind_of(controller, 1)}"]
        fast_steps = (step for step in count(1) if not controller.schedule.full(step))

        def fast_step() -> None:
            controller.begin_step(next(fast_steps))
            trained.step()

        found["fast"] = _occupied(trained, fast_step, fast, bench)
    return {"network": name, "shape": network.shape, "batch": batch, "kinds": found}


def _occupied(trained: Trainee, step: Callable[[], None], seconds: list[float], bench: Bench) -> dict[str, Any]:
    """What a kind of step takes on device and host; ``idle`` is None if the profiler cannot tell."""
    number = bench.number(4, 1)
    for _ in range(2):
        step()
    found = {"seconds": seconds, "launch_seconds": launch_seconds(trained.place, step, number)}
    try:
        found |= busy(trained.place, step, number)
    except Exception as error:  # without a profiler the seconds are still known
        return found | {"busy": None, "kernels": None, "idle": None, "profiler": in_short(error)}
    return found | {"idle": max(0.0, 1.0 - found["busy"] / median(seconds))}


def synchronisation(bench: Bench) -> dict[str, Any]:
    """How often the host waits in twenty steps of each contender."""
    require_cuda(bench.place)
    network = bench.network("BERT-base")
    found = {}
    for contender, config in {**CONTENDERS, "last:1, drift": SETTINGS["last:1, drift"]}.items():
        found[contender] = syncs_of_run(bench, network, config, SYNC_FIRST, SYNC_LAST, bf16=True)
        bench.place.free()
    more = {name: one["number"] - found[BASELINE]["number"] for name, one in found.items()}
    return {"contenders": found, "more_than_trainer": more}
