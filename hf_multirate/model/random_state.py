"""Restore the random generators of Python, numpy and torch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def random_state_restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """A context after which the random generators have their earlier state.

    Args:
        tensors: Tensors on the devices whose generators are restored, besides those of the CPU.
    """
    kinds: dict[str, set[int]] = {}
    for device in {tensor.device for tensor in tensors}:
        if device.type not in ("cpu", "meta"):
            kinds.setdefault(device.type, set()).add(device.index or 0)
    python, numpy = random.getstate(), np.random.get_state()
    kind, indices = next(iter(kinds.items()), ("cuda", set()))
    with torch.random.fork_rng(sorted(indices), device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
