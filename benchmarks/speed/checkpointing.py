"""Speed-up with gradient checkpointing: cycles of standard and multirate training in turn, the head fast.

python -m benchmarks speed checkpointing
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from benchmarks import configs
from benchmarks.commands import parser_of
from benchmarks.network import add_sizes, encoder
from benchmarks.speed.harness import Measurement, Timer, add_record, interleave, ratios, report
from hf_multirate import Multirate


PERIOD = 5
KINDS: dict[str, bool | None] = {"without": None, "use_reentrant=False": False, "use_reentrant=True": True}


def make(reentrant: bool | None, options: argparse.Namespace) -> tuple[Any, torch.optim.Optimizer]:
    """A BERT and its optimizer, with checkpointing unless ``reentrant`` is None."""
    torch.manual_seed(0)
    model = encoder(options, vocab_size=2000)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    return model.train(), torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)


def seconds_of_cycles(reentrant: bool | None, options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of cycles of the baseline and of multirate training."""
    batch = {"input_ids": torch.randint(5, 1999, (options.batch, options.length))}
    batch["labels"] = torch.zeros(options.batch, dtype=torch.long)
    baseline, ours = make(reentrant, options), make(reentrant, options)
    timer = Timer()

    def cycle(kind: str, pair: tuple[Any, torch.optim.Optimizer], number: int) -> None:
        model, optimizer = pair
        with timer(kind):
            for step in range(PERIOD):
                if kind == "multirate":
                    multirate.begin_step(number * PERIOD + step)
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    with Multirate(configs.two_rate("head", PERIOD)).attach(*ours) as multirate:
        blocks = {"baseline": partial(cycle, "baseline", baseline), "multirate": partial(cycle, "multirate", ours)}
        interleave(blocks, options.cycles, timer)
    return timer.seconds


def main(argv: list[str] | None = None) -> Measurement:
    """Measure each kind of checkpointing."""
    parser = parser_of("python -m benchmarks speed checkpointing", __doc__)
    add_sizes(parser, batch=16, length=64, cycles=8)
    add_record(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {}
    speedups: dict[str, list[float]] = {}
    for name, reentrant in KINDS.items():
        found = seconds_of_cycles(reentrant, options)
        seconds |= {f"cycle, {kind}, {name}": values for kind, values in found.items()}
        speedups[f"speed-up, {name}"] = ratios(found["baseline"], found["multirate"])
    return report(Measurement(seconds, speedups, {}), options)
