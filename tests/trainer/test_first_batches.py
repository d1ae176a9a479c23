"""The first batches are those of training, and reading them leaves loader, samplers and data as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, Subset

from hf_multirate.model.random_state import random_state_restored
from hf_multirate.trainer.first_batches import first_batches


class Rows(Dataset[Tensor]):
    """Rows with noise from generators of its own and from the global one."""

    def __init__(self) -> None:
        self.python, self.numpy = random.Random(0), np.random.default_rng(0)
        self.old, self.torch = np.random.RandomState(0), torch.Generator().manual_seed(0)
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Tensor:
        self.reads += 1
        own = [self.python.random(), self.numpy.random(), self.old.rand(), float(torch.rand(1, generator=self.torch))]
        common = [float(torch.rand(1)), random.random(), np.random.rand()]
        return torch.tensor([i, self.reads, *own, *common])


class Passes(Sampler[int]):
    """Another order at each pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter([(i * 3 + self.passes) % 20 for i in range(20)])


class Noisy:
    """A collator with a generator of its own, which it makes at its first batch."""

    generator: torch.Generator | None = None

    def __call__(self, rows: list[Tensor]) -> Tensor:
        self.generator = self.generator or torch.Generator().manual_seed(5)
        return torch.cat([torch.stack(rows), torch.rand(len(rows), 2, generator=self.generator)], 1)


class Wrapped:
    """As Trainer wraps a collator to remove columns."""

    def __init__(self) -> None:
        self.data_collator = Noisy()

    def __call__(self, rows: list[Tensor]) -> Tensor:
        return self.data_collator(rows)


LOADERS: dict[str, Any] = {
    "shuffled": lambda rows: DataLoader(rows, 4, shuffle=True),
    "in order": lambda rows: DataLoader(rows, 4),
    "generator": lambda rows: DataLoader(rows, 4, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "sampler": lambda rows: DataLoader(rows, 4, sampler=Passes()),
    "sampler with generator": lambda rows: DataLoader(
        rows, 4, sampler=RandomSampler(rows, generator=torch.Generator().manual_seed(1))
    ),
    "collator": lambda rows: DataLoader(rows, 4, collate_fn=Noisy()),
    "wrapped collator": lambda rows: DataLoader(rows, 4, collate_fn=Wrapped()),
    "datasets in a dataset": lambda rows: DataLoader(
        ConcatDataset([Subset(rows, range(10)), Subset(Rows(), range(10))]), 4, shuffle=True
    ),
    "workers": lambda rows: DataLoader(rows, 4, shuffle=True, num_workers=1),
    "persistent workers": lambda rows: DataLoader(rows, 4, shuffle=True, num_workers=1, persistent_workers=True),
}


def two_epochs(name: str, number: int, *, prepared: bool) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    loader = LOADERS[name](Rows())
    if prepared:
        loader = Accelerator(cpu=True).prepare(loader)
    with random_state_restored([]):
        first = first_batches(loader, number) if number else []
    return first, [batch for _ in range(2) for batch in loader]


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("name", LOADERS)
def test_training_reads_the_same_as_without(name: str, prepared: bool) -> None:
    _, plain = two_epochs(name, 0, prepared=prepared)
    for number in (3, 99):
        first, after = two_epochs(name, number, prepared=prepared)
        assert len(first) == min(number, 5)
        assert all(map(torch.equal, first, plain[: len(first)]))
        assert all(map(torch.equal, after, plain))
        assert len(after) == len(plain)


def test_accelerate_has_no_loader_that_is_read() -> None:
    accelerator = Accelerator(cpu=True)
    # All objects share the state, and the loader of an earlier test may not be read to its end.
    accelerator.gradient_state.__dict__["_dataloader_references_ref"] = [None]
    loader = accelerator.prepare(DataLoader(Rows(), 4))
    first_batches(loader, 2)
    assert not accelerator.gradient_state.in_dataloader
    first_batches(loader, 99)
    assert not accelerator.gradient_state.in_dataloader
    assert not loader.end_of_dataloader


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(20)


@pytest.mark.parametrize("prepared", [True, False])
def test_a_stream_is_refused_by_name(prepared: bool) -> None:
    loader = DataLoader(Stream(), 4)
    if prepared:
        loader = Accelerator(cpu=True).prepare(loader)
    with pytest.raises(NotImplementedError, match=r"first 3 batches twice, and Stream .*head_start\(model, batches\)"):
        first_batches(loader, 3)
    assert next(iter(loader)).tolist() == [0, 1, 2, 3]


def test_a_generator_is_refused_by_name() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = iter(range(3))

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            return next(self.left)

    once = Once()
    with pytest.raises(NotImplementedError, match="Once may be readable only once"):
        first_batches(once, 1)
    assert list(once) == [0, 1, 2]


def test_a_stream_of_datasets_begins_again() -> None:
    stream = datasets.Dataset.from_dict({"x": list(range(12))}).to_iterable_dataset().shuffle(seed=1, buffer_size=5)
    loader = Accelerator(cpu=True).prepare(DataLoader(stream, 4))
    first = first_batches(loader, 2)
    assert [batch["x"].tolist() for batch in loader][:2] == [batch["x"].tolist() for batch in first]
