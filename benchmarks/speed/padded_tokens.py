"""Padded tokens of full steps over the mean of all steps, where batches are sorted by length.

    python -m benchmarks speed padded-tokens                     # the sentences and reviews that come with packages
    python -m benchmarks speed padded-tokens --data-dir DIR      # the other texts too

Trainer's ``train_sampling_strategy="group_by_length"`` sorts up to 50 batches at a time, the longest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.accuracy.tasks import TASKS, load, missing
from benchmarks.commands import parser_of
from benchmarks.tables import table


PERIODS = (2, 4, 5, 8, 16)


def padded(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Tokens of a padded row of each batch of an epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = list(LengthGroupedSampler(batch_size, lengths=list(lengths), generator=generator))
    starts = range(0, len(order), batch_size)
    return [max(lengths[i] for i in order[start : start + batch_size]) for start in starts]


def share(tokens: Sequence[int], period: int) -> float:
    """Tokens of every ``period``-th batch, from the first on, over those of all: means."""
    return fmean(tokens[::period]) / fmean(tokens)


def main(argv: list[str] | None = None) -> str:
    """One row per task: means over seeds."""
    parser = parser_of("python -m benchmarks speed padded-tokens", __doc__)
    parser.add_argument("--data-dir", type=Path, help="folder with the data of the other tasks")
    parser.add_argument("--seeds", type=int, default=20, help="default: 20")
    options = parser.parse_args(argv)
    rows = []
    for task in (task for task in TASKS.values() if not task.bf16):
        if missing(task, options.data_dir):
            continue
        data = load(task, options.data_dir)
        if not data.by_length:
            continue
        lengths = [len(ids) for ids in data.train["input_ids"]]
        epochs = [padded(lengths, task.batch_size, seed) for seed in range(options.seeds)]
        rows.append([task.name, *(f"{fmean(share(tokens, period) for tokens in epochs):.2f}" for period in PERIODS)])
    found = table(["task", *(f"period {period}" for period in PERIODS)], rows)
    print(found)
    return found
