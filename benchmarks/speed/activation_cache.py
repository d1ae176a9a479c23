"""Whole runs with a frozen lower part: standard training, frozen blocks, and a cache of their outputs.

    python -m benchmarks speed activation-cache --record FILE
    python -m benchmarks speed activation-cache --record FILE --epochs 3 10 --rounds 5

Each run trains the embedded encoder of six blocks on sentences of film reviews, in one process. Runs are interleaved,
and each is one line of ``--record``: a second call continues where the first one was stopped. CPU seconds are those of
this process, which other processes hardly change.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets.utils.logging import disable_progress_bar
from transformers import TrainingArguments

from benchmarks import configs, machine
from benchmarks.accuracy.tasks import TASKS, Data, load
from benchmarks.commands import parser_of
from benchmarks.jsonl import append_lines, read_lines
from benchmarks.speed.harness import ratios
from benchmarks.tables import table, with_quartiles
from hf_multirate import MultirateTrainer


BASELINE = "baseline"
FAST = ("last:2", "head")
CACHES: dict[str, str | None] = {"frozen": None, "memory": "memory", "disk": "disk", "disk again": "disk"}
"""Name in the results -> the setting ``activation_cache``; *disk again* reads what the run before has kept."""

Run = tuple[str, str, int, int]
"""Fast part, kind, epochs and round."""


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """All runs in the order of their rounds; the order of a round is drawn."""
    drawn = random.Random(0)
    for number in range(options.rounds):
        cases = [("all", BASELINE, epochs, number) for epochs in options.epochs]
        cases += [(fast, kind, epochs, number) for fast in FAST for kind in CACHES for epochs in options.epochs]
        # A second run on disk needs the folder of the first one.
        cases = [case for case in cases if case[1] != "disk again"]
        for case in drawn.sample(cases, len(cases)):
            yield case
            if case[1] == "disk":
                yield (case[0], "disk again", *case[2:])


def train(run: Run, data: Data, options: argparse.Namespace, cache: Path) -> dict[str, Any]:
    """Train once. Returns seconds and the counts of the cache."""
    fast, kind, epochs, _ = run
    config = configs.off() if kind == BASELINE else configs.never(fast, CACHES[kind], cache)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=32, num_train_epochs=epochs, learning_rate=1e-4, logging_steps=10_000,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = MultirateTrainer(
            data.model(0), arguments, data.collator, data.train.select(range(options.rows)), multirate=config,
            multirate_record=False,
        )  # fmt: skip
        wall, process = time.perf_counter(), time.process_time()
        loss = trainer.train().training_loss
        seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - process}
    counts = trainer.multirate.activation_cache
    return {**seconds, "loss": loss, "cache": None if counts is None else counts.summary()}


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """Speed-ups over the baseline of the same round and epochs, and what the cache took."""
    found = {(line["fast"], line["kind"], line["epochs"], line["round"]): line for line in lines}
    rows = []
    for fast, kind, epochs in sorted({run[:3] for run in found}, key=lambda key: (key[2], key[0], key[1])):
        rounds = [number for number in range(1000) if (fast, kind, epochs, number) in found]
        own = [found[fast, kind, epochs, number] for number in rounds]
        base = [found.get(("all", BASELINE, epochs, number)) for number in rounds]
        pairs = [(one, other) for one, other in zip(base, own, strict=True) if one is not None]
        cells = [str(epochs), fast, kind, with_quartiles([line["seconds"] for line in own])]
        for name in ("seconds", "cpu_seconds"):
            cells.append(with_quartiles(ratios([a[name] for a, _ in pairs], [b[name] for _, b in pairs])))
        cache = own[-1]["cache"]
        cells += ["", ""] if cache is None else [f"{cache['bytes'] / 1e6:.1f}", _look_up(own)]
        rows.append(cells)
    header = ["epochs", "trained", "kind", "seconds", "speed-up", "speed-up, CPU", "cache, MB", "microseconds a row"]
    return table(header, rows)


def _look_up(lines: Sequence[Mapping[str, Any]]) -> str:
    caches = [line["cache"] for line in lines]
    return with_quartiles([1e6 * cache["seconds"] / (cache["hits"] + cache["misses"]) for cache in caches])


def main(argv: list[str] | None = None) -> str:
    """Train what is missing in the record, and print the table."""
    parser = parser_of("python -m benchmarks speed activation-cache", __doc__)
    parser.add_argument("--rows", type=int, default=960, help="training rows (default: 960)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 10], help="default: 3 10")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--record", type=Path, required=True, help="file of JSON lines with all runs")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    disable_progress_bar()
    lines = read_lines(options.record) if options.record.exists() else []
    lines = [line for line in lines if line["kind"] != "machine"]
    done = {(line["fast"], line["kind"], line["epochs"], line["round"]) for line in lines}
    data = load(TASKS["embedded"], None)
    at = {**machine.commit(options.record.parent, allow_dirty=True), **machine.hardware()}
    described = {**at, "versions": machine.versions()}
    with tempfile.TemporaryDirectory() as folder:
        for run in runs(options):
            cache = Path(folder, *map(str, (run[0], run[2], run[3])))
            if run in done and not (run[1] == "disk" and (run[0], "disk again", *run[2:]) not in done):
                continue
            line = dict(zip(("fast", "kind", "epochs", "round"), run, strict=True))
            line |= {"rows": options.rows, **train(run, data, options, cache)}
            if run not in done:
                key = machine.machine_id(described)
                append_lines(options.record, [{"kind": "machine", "id": key, **described}, {**line, "machine": key}])
                lines.append(line)
            print(run, f"{line['seconds']:.1f} s", flush=True)
    found = report(lines)
    print(found)
    return found
