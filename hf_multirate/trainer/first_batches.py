"""The first batches of a data loader, read before training without any effect on training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderStateMixin
from torch.utils.data import Dataset, IterableDataset


PARTS = (
    "base_dataloader", "batch_sampler", "sampler", "generator", "synchronized_generator", "dataset", "datasets",
    "collate_fn", "data_collator",
)  # fmt: skip
"""Attributes of data loaders and samplers whose state reading may change."""

GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.Generator: (
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
    ),
}
"""Kind of a random generator -> functions that read and set its state."""


def first_batches(loader: Any, number: int) -> list[Any]:
    """The first ``number`` batches of ``loader``, or all of them if there are fewer.

    The loader, its samplers, its dataset and its collator get back their attributes and the states of their random
    generators. Global random generators are left to the caller.

    Raises:
        NotImplementedError: the data can be read only once.
    """
    dataset = _stream(loader)
    if dataset is not None:
        raise NotImplementedError(
            f"head_start reads the first {number} batches twice, and {type(dataset).__name__} may be readable only "
            "once. Use a dataset with a length, or set head_start=0 and call hf_multirate.head_start(model, batches) "
            "before training."
        )
    with _attributes_restored(loader):
        iterator = iter(loader)
        try:
            return list(islice(iterator, number))
        finally:
            if isinstance(iterator, GeneratorType):
                iterator.close()
            if isinstance(loader, DataLoaderStateMixin) and loader in loader.gradient_state.dataloader_references:
                loader.end()  # Accelerate does so only at the end of an epoch


def _stream(loader: Any) -> Any:
    """The dataset of ``loader``, or the loader, if it may be readable only once; else None."""
    dataset = vars(loader).get("dataset") or vars(vars(loader).get("base_dataloader", loader)).get("dataset")
    # Accelerate wraps a stream that it shards.
    while isinstance(dataset, IterableDataset) and isinstance(vars(dataset).get("dataset"), IterableDataset):
        dataset = vars(dataset)["dataset"]
    if isinstance(dataset, IterableDataset):
        # The streams of the library datasets start again for each epoch.
        return None if type(dataset).__module__.startswith("datasets.") else dataset
    return loader if dataset is None and iter(loader) is loader else None


@contextmanager
def _attributes_restored(loader: Any) -> Iterator[None]:
    parts = list(_parts(loader))
    saved = [(part, dict(vars(part))) for part in parts]
    generators = {id(value): value for _, values in saved for value in values.values() if _kind(value) is not None}
    states = [(value, GENERATORS[_kind(value)][0](value)) for value in generators.values()]
    try:
        yield
    finally:
        for part, values in saved:
            vars(part).clear()
            vars(part).update(values)
        for value, state in states:
            GENERATORS[_kind(value)][1](value, state)


def _kind(value: Any) -> Any:
    return next((kind for kind in GENERATORS if isinstance(value, kind)), None)


def _parts(loader: Any) -> Iterator[Any]:
    """The loader, and the samplers, datasets and functions below it, that have attributes."""
    found: set[int] = set()
    waiting = [loader]
    while waiting:
        part = waiting.pop()
        try:
            values = vars(part)
        except TypeError:  # it has no attributes
            continue
        if id(part) in found or isinstance(part, type):
            continue
        found.add(id(part))
        yield part
        for name, value in values.items():
            if name in PARTS or isinstance(value, Dataset):
                waiting += value if isinstance(value, (list, tuple)) else [value]
