"""Speed-up with activation checkpointing: cycles of plain and multirate training in turn, the head fast.

python benchmarks/checkpointing.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from encoder import add_sizes, encoder
from hf_multirate import Multirate, MultirateConfig


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


def ratios(reentrant: bool | None, options: argparse.Namespace) -> list[float]:
    """Seconds of a cycle of plain training over those of multirate training, cycle by cycle."""
    batch = {"input_ids": torch.randint(5, 1999, (options.batch, options.length))}
    batch["labels"] = torch.zeros(options.batch, dtype=torch.long)
    (plain, theirs), (model, ours) = (make(reentrant, options) for _ in range(2))
    found = []
    with Multirate(MultirateConfig.two_rate("head", PERIOD, turns="fixed")).attach(model, ours) as multirate:
        for cycle in range(options.cycles + 1):  # the first warms up
            times = [time.perf_counter()]
            for pair in ((plain, theirs), (model, ours)):
                for step in range(PERIOD):
                    if pair[0] is model:
                        multirate.begin_step(cycle * PERIOD + step)
                    pair[0](**batch).loss.backward()
                    pair[1].step()
                    pair[1].zero_grad()
                times.append(time.perf_counter())
            found.append((times[1] - times[0]) / (times[2] - times[1]))
    return found[1:]


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Print quartiles of the speed-up for each kind of checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, batch=16, length=64, cycles=8)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    quartiles = {name: statistics.quantiles(ratios(kind, options), n=4) for name, kind in KINDS.items()}
    print(json.dumps({name: [round(value, 2) for value in row] for name, row in quartiles.items()}, indent=2))
    return quartiles


if __name__ == "__main__":
    main()
