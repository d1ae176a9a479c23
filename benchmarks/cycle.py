"""What a cycle costs beside the sum of its parts, and what period 1 and the change of phase cost at all.

    python benchmarks/cycle.py
    python benchmarks/cycle.py --layers 24 --batch 8

All kinds of step go in turn within one process, so that a machine that grows slower favours none:

- *plain*: forward, backward, clipping and AdamW of everything, without this package;
- *below + above*: an inference pass below the boundary, and forward, backward, clipping and AdamW above it, written
  out by hand: what a fast-only step would cost if everything else were free;
- *full*, *fast*: the steps of a multirate cycle, head fast;
- *period 1*: a controller with nothing to do.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from encoder import add_sizes, encoder
from hf_multirate import Multirate, MultirateConfig, RateGroup
from hf_multirate.backward.low_precision import DTYPES


Pair = tuple[Any, torch.optim.Optimizer]


def make(options: argparse.Namespace) -> Pair:
    """A BERT of the size of MiniLM, unless asked for another, and its optimizer."""
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
    """A fast-only step by hand, the encoder below the boundary and the head above it."""
    model, optimizer = pair
    model.bert.eval()
    with torch.no_grad():
        pooled = model.bert(batch["input_ids"], batch["attention_mask"]).pooler_output
    model.bert.train()
    nn.functional.cross_entropy(model.classifier(model.dropout(pooled)), batch["labels"]).backward()
    nn.utils.clip_grad_norm_(model.classifier.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Process seconds of every step of each kind, cycle after cycle; the first cycle warms up."""
    batch = {"input_ids": torch.randint(5, 30_000, (options.batch, options.length))}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["labels"] = torch.zeros(options.batch, dtype=torch.long)
    plain, by_hand, one, ours = (make(options) for _ in range(4))
    found: dict[str, list[float]] = defaultdict(list)

    def timed(kind: str, pair: Pair, what: Any = step, controller: Multirate | None = None, number: int = 0) -> None:
        start = time.process_time()
        if controller is not None:
            controller.begin_step(number)
            found[f"begin {kind}"].append(time.process_time() - start)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            what(pair, batch)
        found[kind].append(time.process_time() - start)

    slow = RateGroup("slow", ".*", options.period, drift_steps=options.drift_steps)
    config = MultirateConfig([RateGroup("fast", "head", 1), slow], idle_dtype=options.idle_dtype, turns="fixed")
    order, blocks = random.Random(0), ["plain", "period 1", "cycle", "by hand"]
    with Multirate(config).attach(*ours) as multirate, Multirate(MultirateConfig.off()).attach(*one) as idle:
        for cycle in range(options.cycles + 1):
            # What went before decides how much memory is at hand: no kind is always behind the same other.
            for block in order.sample(blocks, len(blocks)):
                if block == "plain":
                    timed("plain", plain)
                elif block == "period 1":
                    timed("period 1", one, controller=idle, number=cycle)
                for i in range(options.period if block == "cycle" else 0):
                    timed("fast" if i else "full", ours, controller=multirate, number=cycle * options.period + i)
                for _ in range(options.period - 1 if block == "by hand" else 0):
                    timed("below + above", by_hand, below_and_above)
            if cycle == 0:
                found.clear()
    return found


def summary(found: dict[str, list[float]], period: int) -> dict[str, Any]:
    """Quartiles of seconds, and of ratios cycle by cycle."""
    cycles = range(len(found["plain"]))

    def of(kind: str, cycle: int) -> float:
        return sum(found[kind][cycle * (period - 1) : (cycle + 1) * (period - 1)])

    ours = [found["full"][c] + of("fast", c) for c in cycles]
    parts = [found["plain"][c] + of("below + above", c) for c in cycles]
    ratios = {
        "cycle / sum of its parts": [a / b for a, b in zip(ours, parts, strict=True)],
        "speed-up": [period * found["plain"][c] / ours[c] for c in cycles],
        "full / plain": [found["full"][c] / found["plain"][c] for c in cycles],
        "fast / plain": [of("fast", c) / (period - 1) / found["plain"][c] for c in cycles],
        "period 1 / plain": [found["period 1"][c] / found["plain"][c] for c in cycles],
        "begin_step / fast step": [a / b for a, b in zip(found["begin fast"], found["fast"], strict=True)],
    }
    quartiles = {name: [round(v, 4) for v in statistics.quantiles(values, n=4)] for name, values in ratios.items()}
    return {"seconds": {name: round(statistics.median(v), 4) for name, v in found.items()}, "ratios": quartiles}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Print medians of seconds and quartiles of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, batch=32, length=64, period=5, cycles=8)
    parser.add_argument("--drift-steps", type=int, help="idle steps that drift (default: all)")
    parser.add_argument("--idle-dtype", choices=DTYPES, help="precision of what is idle (default: float32)")
    parser.add_argument("--bf16", action="store_true", help="mixed precision in all kinds of step")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = summary(times(options), options.period)
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
