"""A cycle of multirate training against the sum of its parts, and the cost of period 1 and of beginning a step.

    python -m benchmarks speed cycle
    python -m benchmarks speed cycle --layers 24 --batch 8

Kinds of step, in turn within one process:

- *baseline*: forward, backward, clipping and AdamW of all parameters, without this package;
- *below + above*: an inference pass below the boundary, and forward, backward, clipping and AdamW above it, written by
  hand: the cost of a fast step if everything else were free;
- *full*, *fast*: the steps of a multirate cycle, head fast;
- *period 1*: a controller with nothing to do.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks import configs
from benchmarks.commands import parser_of
from benchmarks.network import add_sizes, encoder
from benchmarks.speed.harness import Measurement, Timer, add_record, interleave, ratios, report
from hf_multirate import Multirate


Pair = tuple[Any, torch.optim.Optimizer]


def make(options: argparse.Namespace) -> Pair:
    """A BERT of the asked sizes, and its optimizer."""
    torch.manual_seed(0)
    model = encoder(options)
    return model.train(), torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)


def step(pair: Pair, batch: dict[str, torch.Tensor]) -> None:
    """A step of training."""
    model, optimizer = pair
    model(**batch).loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def below_and_above(pair: Pair, batch: dict[str, torch.Tensor]) -> None:
    """A fast step by hand, the encoder below the boundary and the head above it."""
    model, optimizer = pair
    model.bert.eval()
    with torch.no_grad():
        pooled = model.bert(batch["input_ids"], batch["attention_mask"]).pooler_output
    model.bert.train()
    nn.functional.cross_entropy(model.classifier(model.dropout(pooled)), batch["labels"]).backward()
    nn.utils.clip_grad_norm_(model.classifier.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def seconds_of_steps(options: argparse.Namespace) -> dict[str, list[float]]:
    """Process seconds of every step of each kind, cycle after cycle."""
    batch = {"input_ids": torch.randint(5, 30_000, (options.batch, options.length))}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["labels"] = torch.zeros(options.batch, dtype=torch.long)
    baseline, by_hand, one, ours = (make(options) for _ in range(4))
    timer = Timer(time.process_time)

    def measure(kind: str, pair: Pair, what: Any = step, controller: Multirate | None = None, number: int = 0) -> None:
        with timer(kind):
            if controller is not None:
                with timer(f"begin {kind}"):
                    controller.begin_step(number)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                what(pair, batch)

    def cycle(number: int) -> None:
        for i in range(options.period):
            measure("fast" if i else "full", ours, controller=multirate, number=number * options.period + i)

    def parts_by_hand(_: int) -> None:
        for _ in range(options.period - 1):
            measure("below + above", by_hand, below_and_above)

    config = configs.two_rate("head", options.period, options.idle, options.inactive_dtype)
    with Multirate(config).attach(*ours) as multirate, Multirate(configs.off()).attach(*one) as off:
        blocks = {
            "baseline": lambda _: measure("baseline", baseline),
            "period 1": lambda number: measure("period 1", one, controller=off, number=number),
            "cycle": cycle,
            "by hand": parts_by_hand,
        }
        interleave(blocks, options.cycles, timer)
    return timer.seconds


def quotients(seconds: Mapping[str, Sequence[float]], period: int) -> dict[str, list[float]]:
    """Ratios, cycle by cycle."""

    def of_cycles(kind: str) -> list[float]:
        values = seconds[kind]
        return [sum(values[start : start + period - 1]) for start in range(0, len(values), period - 1)]

    baseline, full, fast = seconds["baseline"], seconds["full"], of_cycles("fast")
    ours = [a + b for a, b in zip(full, fast, strict=True)]
    parts = [a + b for a, b in zip(baseline, of_cycles("below + above"), strict=True)]
    return {
        "cycle / sum of its parts": ratios(ours, parts),
        "speed-up": ratios([period * value for value in baseline], ours),
        "full / baseline": ratios(full, baseline),
        "fast / baseline": ratios([value / (period - 1) for value in fast], baseline),
        "period 1 / baseline": ratios(seconds["period 1"], baseline),
        "begin_step / fast step": ratios(seconds["begin fast"], seconds["fast"]),
    }


def main(argv: list[str] | None = None) -> Measurement:
    """Measure cycles."""
    parser = parser_of("python -m benchmarks speed cycle", __doc__)
    add_sizes(parser, batch=32, length=64, period=5, cycles=8)
    parser.add_argument("--idle", choices=configs.IDLE, default="drift", help="of the slow group (default: drift)")
    parser.add_argument("--inactive-dtype", choices=configs.DTYPES, help="of inactive modules (default: float32)")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in all kinds of step")
    add_record(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    seconds = seconds_of_steps(options)
    return report(Measurement(seconds, quotients(seconds, options.period), {}), options)
