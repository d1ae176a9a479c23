"""`python -m benchmarks speed CASE`: seconds of steps and of runs, kinds measured in turn."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.commands import Command, dispatch


CASES = {
    "cycle": Command("benchmarks.speed.cycle", "a cycle of multirate training against the sum of its parts"),
    "checkpointing": Command("benchmarks.speed.checkpointing", "speed-up with gradient checkpointing"),
    "ddp": Command("benchmarks.speed.ddp", "DDP in several processes, with and without communication"),
    "activation-cache": Command("benchmarks.speed.activation_cache", "frozen lower blocks, run once for each row"),
    "glue": Command("benchmarks.speed.glue_pairs", "whole runs of examples/run_glue.py in pairs"),
    "prediction": Command("benchmarks.speed.prediction", "speed-up predicted by plan() and measured in training"),
    "padded-tokens": Command("benchmarks.speed.padded_tokens", "tokens of full steps where batches go by length"),
}


def main(argv: list[str] | None = None) -> Any:
    """Run one case, and return its measurements."""
    arguments = sys.argv[1:] if argv is None else argv
    description = "Time kinds of training steps in turn, so that a machine that grows slower favours none."
    return dispatch("python -m benchmarks speed", description, CASES, arguments)


if __name__ == "__main__":
    main()
