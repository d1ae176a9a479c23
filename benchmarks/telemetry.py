"""What it costs to know: the share of training that goes into telemetry.

    python benchmarks/telemetry.py
    python benchmarks/telemetry.py --layers 24 --batch 8 --tokens 32
    python benchmarks/telemetry.py --speedup 2 --steps 120    # of automatic training: all that it measures and plans

All that telemetry does is timed from inside while a `hf_multirate.MultirateTrainer` trains and logs at every step,
which is as often as it can be. Slow groups that find out how far they drift look back at their gradients anyway:
that is shown and not added. With automatic training it is part of the measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainingArguments

from encoder import add_sizes, encoder
from hf_multirate import MultirateConfig, MultirateTrainer
from hf_multirate.auto.planner import Planner
from hf_multirate.optim.loss_decrease import Appraisal
from hf_multirate.optim.update_group import Bucket
from hf_multirate.optim.updater import Movement
from hf_multirate.trainer.run_logging import PhaseOnBar
from hf_multirate.trainer.run_metrics import Observation


PARTS: tuple[tuple[type[Any], str], ...] = (
    (Planner, "begin"),
    (Bucket, "slopes"),
    (Movement, "adopt"),
    *((Appraisal, name) for name in ("_count", "_note", "send")),
    *((Observation, name) for name in ("see", "add_norm", "figures", "note")),
    (PhaseOnBar, "on_step_end"),
)

ANYWAY = "looking back for drift, with or without telemetry"


@contextlib.contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add up the seconds spent in `PARTS`."""
    originals = [(owner, name, vars(owner)[name]) for owner, name in PARTS]

    def watched(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                anyway = name == "slopes" and args[0].trust.adapts
                seconds[ANYWAY if anyway else name] += time.perf_counter() - start

        return call

    for owner, name, original in originals:
        setattr(owner, name, watched(name, original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def main(argv: list[str] | None = None) -> None:
    """Train, and print shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser, batch=32, tokens=64, steps=51, period=5)
    parser.add_argument("--idle", default="drift", help="what slow parameters do: with 'hold' none looks back anyway")
    parser.add_argument("--speedup", type=float, help="train automatically with this budget instead")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [
        {"input_ids": torch.randint(1000, (options.tokens,)), "labels": torch.tensor(i % 2)}
        for i in range(2 * options.batch)
    ]
    seconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder, timed(seconds), contextlib.redirect_stdout(sys.stderr):
        args = TrainingArguments(
            folder, max_steps=options.steps, per_device_train_batch_size=options.batch, logging_steps=1, report_to=[],
            save_strategy="no", use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        if options.speedup is None:
            config = MultirateConfig.two_rate("head", options.period, options.idle)
        else:
            config = MultirateConfig.auto(options.speedup)
        trainer = MultirateTrainer(model=encoder(options), args=args, train_dataset=rows, multirate=config)
        trainer.train()
        whole = trainer.multirate.telemetry.in_steps
    print(f"{options.steps} steps in {whole:.1f} s")
    for name, value in seconds.items():
        print(f"{name}: {100 * value / whole:.3f} %")
    added = sum(seconds.values()) - seconds[ANYWAY]
    print(f"together: {100 * added / whole:.3f} % of the time of steps")


if __name__ == "__main__":
    main()
