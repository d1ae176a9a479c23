"""Seconds of each kind of step on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from hf_multirate.config import MultirateConfig
from hf_multirate.controller import Multirate
from hf_multirate.planning.counting import loss_of
from hf_multirate.planning.kinds import Live, kinds_of


ROUNDS = 5
"""How often each kind of step is timed, after one round that warms up."""


def seconds_of(model: nn.Module, batch: Mapping[str, Any], config: MultirateConfig) -> dict[Live, float]:
    """Median seconds of a step with each set of live groups, and under the empty set of one of plain training.

    Kinds take turns, so that none has a faster machine. The optimizer is AdamW at learning rate zero, which moves
    nothing.
    """
    kinds = {live: config.schedule.example(live) for live in kinds_of(config.schedule)}
    found: dict[Live, list[float]] = defaultdict(list)
    with torch.random.fork_rng():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        for turn in range(ROUNDS + 1):
            seconds: dict[Live, float] = {(): _timed(model, batch, optimizer)}
            with Multirate(config).attach(model, optimizer) as controller:
                for live, step in kinds.items():
                    for _ in range(2):  # as most steps of a kind follow one of the same
                        controller.begin_step(step)
                        seconds[live] = _timed(model, batch, optimizer)
            for live, value in seconds.items():
                if turn:
                    found[live].append(value)
    return {live: median(values) for live, values in found.items()}


def _timed(model: nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    torch.autograd.backward(loss_of(model, batch))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
