"""Time the kinds of steps of a setting.

- Each setting takes steps in its Trainer on the same few batches, whose lengths stand for those of all batches, and
  each batch as often as a cycle has steps. So every kind of step sees every batch.
- With an activation cache, the first step on a batch is one that writes, and the others are of kept rows. The trial of
  the prefix at the first step of a run, which is one more forward pass of it, is not charged.
- A step is timed from the end of the step before it, so it includes its batch.
- A head start is one kind, of all its batches and steps.
- Reading and padding batches is timed for itself too, for information: it is in the seconds of all steps.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.accuracy.tasks import Data, Task
from benchmarks.accuracy.train_one import arguments
from benchmarks.budgets.build import build
from benchmarks.budgets.contenders import CONTENDERS, Contender
from benchmarks.budgets.kinds import HEAD_START, READING, Times, head_start_name
from benchmarks.budgets.tasks import base_rate
from benchmarks.budgets.vcas_control import PROBE, SHARES
from hf_multirate import Multirate


BATCHES = 4
"""Batches on which steps are timed."""

CACHED_REPEATS = 4
"""Steps on each of them with an activation cache: one that writes, and three of kept rows."""


class KindClock(TrainerCallback):
    """Seconds of each step from the end of the one before, and of the time before the first step."""

    def __init__(self, kind: Any) -> None:
        self.steps: list[tuple[str, float, float]] = []
        self.before_first = (0.0, 0.0)
        self.groups: list[tuple[str, int]] = []
        """Names and periods of the rate groups, once the run has ended."""
        self._kind = kind
        self._last = (0.0, 0.0)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock. The callback of a head start comes after this one."""
        if not self.steps:
            self._last = _now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time before the first step."""
        if not self.steps and not any(self.before_first):
            self.before_first = _since(self._last)
            self._last = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the seconds of the step."""
        self.steps.append((self._kind(), *_since(self._last)))
        self._last = _now()


def _now() -> tuple[float, float]:
    if torch.cuda.is_initialized():  # a step on a GPU ends when the GPU has done its work
        torch.cuda.synchronize()
    return time.process_time(), time.perf_counter()


def _since(begun: tuple[float, float]) -> tuple[float, float]:
    process, wall = _now()
    return process - begun[0], wall - begun[1]


def typical_batches(data: Data, size: int, number: int) -> list[list[int]]:
    """Row numbers of ``number`` batches whose lengths are evenly spaced quantiles of all lengths."""
    rows = len(data.train)
    lengths = [len(ids) for ids in data.train["input_ids"]] if data.by_length else [0] * rows
    order = np.argsort(lengths, kind="stable") if data.by_length else np.arange(rows)
    middles = [round((i + 0.5) / number * rows) for i in range(number)]
    starts = [min(max(0, middle - size // 2), max(0, rows - size)) for middle in middles]
    return [[int(i) for i in order[start : start + size]] for start in starts]


def _other_rows(data: Data, batches: Sequence[Sequence[int]]) -> list[int]:
    """A batch of rows that are in none of ``batches``, or the first one if there are too few rows."""
    taken, size = {i for batch in batches for i in batch}, len(batches[0])
    others = [i for i in range(len(data.train)) if i not in taken][:size]
    return others if len(others) == size else list(batches[0])


def time_steps(
    contender: Contender, task: Task, data: Data, repeats: int, options: dict[str, Any], device: str = "cpu"
) -> KindClock:
    """Take ``repeats`` steps on each typical batch, after as many on other rows to warm up."""
    batches = typical_batches(data, task.batch_size, BATCHES)
    rows = [i for batch in [_other_rows(data, batches), *batches] for _ in range(repeats) for i in batch]
    clock, aside = _timed(contender, task, data, rows, options, device)
    clock.steps = clock.steps[repeats:]
    clock.steps += [(PROBE, p, w) for _, p, w in aside[-BATCHES:] for _ in range(repeats)]
    return clock


def _timed(
    contender: Contender, task: Task, data: Data, rows: Sequence[int], options: dict[str, Any], device: str
) -> tuple[KindClock, list[tuple[str, float, float]]]:
    """Train on ``rows`` in their order. ``aside`` is what came between steps."""
    chosen = data.train.select(rows) if data.by_length else [data.train[i] for i in rows]
    steps = -(-len(rows) // task.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(task, base_rate(task), 0, by_length=False, steps=steps, folder=folder, device=device)
        args.train_sampling_strategy = "sequential"
        words = {"train_dataset": chosen, "data_collator": data.collator}
        built = build(contender, data.model(0), args, fixed_turns=True, options=options, **words)
        clock = KindClock(built.kind)
        built.trainer.add_callback(clock)
        built.trainer.train()
    clock.groups = [(group.name, group.period) for group in built.trainer.multirate.groups]
    return clock, built.aside


def cycle_of(contender: Contender, data: Data) -> int:
    """Steps of a cycle, once periods are known for the model."""
    if contender.config.auto_periods is None:
        return contender.config.schedule.cycle
    return Multirate(contender.config).assign(data.model(0)).schedule.cycle


def variants(contender: Contender) -> list[dict[str, Any]]:
    """Options with which the setting is run, so that each kind of step is timed."""
    if contender.setting.kind != "vcas":
        return [{}]
    shares = [{"frequency": 0, "share": share} for share in SHARES]
    return [*shares, {"frequency": 1, "share": 1.0}]


def time_setting(name: str, task: Task, data: Data, device: str = "cpu") -> dict[str, Any]:
    """Seconds of all kinds of steps of the contender ``name``, and its rate groups."""
    return time_contender(replace(CONTENDERS[name], head_start=False), task, data, device)


def time_contender(contender: Contender, task: Task, data: Data, device: str = "cpu") -> dict[str, Any]:
    """The same for a contender without a head start."""
    repeats = max(CACHED_REPEATS if contender.cached else 2, cycle_of(contender, data))
    times: Times = {}
    for options in variants(contender):
        clock = time_steps(contender, task, data, repeats, options, device)
        found = by_kind(clock.steps, repeats)
        if options.get("frequency"):
            found = {PROBE: found[PROBE]}
        times |= found
    groups = [[name, period] for name, period in clock.groups]
    return {"setting": contender.cost, "groups": groups, "rows": len(data.train), "times": times}


def by_kind(steps: Sequence[tuple[str, float, float]], repeats: int) -> Times:
    """Median seconds of each kind on each batch; steps are ordered by batch, with ``repeats`` steps on each."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for i, (kind, process, wall) in enumerate(steps):
        found[kind, i // repeats % BATCHES].append((process, wall))
    times: Times = {}
    for (kind, _), values in sorted(found.items(), key=lambda item: item[0][1]):
        of_kind = times.setdefault(kind, {"process_seconds": [], "wall_seconds": []})
        for key, number in zip(of_kind, zip(*values, strict=True), strict=True):
            of_kind[key].append(float(np.median(number)))
    return times


def time_head_start(name: str, task: Task, data: Data, device: str = "cpu") -> dict[str, Any]:
    """Seconds of a head start of the contender ``name``, on batches of all lengths, and of reading these batches."""
    contender = CONTENDERS[name]
    number = contender.config.head_start
    rows = [i for batch in typical_batches(data, task.batch_size, number) for i in batch]
    options = {"frequency": 0} if contender.setting.kind == "vcas" else {}
    clock, _ = _timed(contender, task, data, rows, options, device)
    begun, chosen = _now(), [data.train[i] for i in rows]
    for i in range(0, len(chosen), task.batch_size):
        data.collator(chosen[i : i + task.batch_size])
    reading = [value / number for value in _since(begun)]
    times = {HEAD_START: clock.before_first, READING: reading}
    keys = ("process_seconds", "wall_seconds")
    named = {kind: {key: [value] for key, value in zip(keys, pair, strict=True)} for kind, pair in times.items()}
    return {"setting": head_start_name(contender), "groups": [], "rows": len(data.train), "times": named}
