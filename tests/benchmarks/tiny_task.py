"""A task of a few rows, on which every method runs in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, set_seed

from benchmarks.accuracy.tasks import Data, Task
from tests.support.tiny import tokenizer


TINY = Task("tiny", (1e-3, 1e-2), seeds=2, batch_size=2, epochs=(("short", 1), ("long", 2)))


def network(seed: int) -> nn.Module:
    set_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes))


def load(*_: Any) -> Data:
    rows = [{"input_ids": [3 + (i * j) % 30 for j in range(3 + i % 4)], "labels": i % 3} for i in range(20)]
    parts = [Dataset.from_list(rows[a:b]) for a, b in ((0, 12), (12, 16), (16, 20))]
    return Data(*parts, DataCollatorWithPadding(tokenizer()), network, by_length=True)


def options(out: Path, *more: str) -> list[str]:
    """The command line of the suite for the tiny task."""
    return ["--suite", "tiny", "--jobs", "0", "--quiet", "--allow-dirty", "--out", str(out), *more]
