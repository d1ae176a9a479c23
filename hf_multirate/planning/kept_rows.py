"""Work that an activation cache saves once the rows of a batch are kept: the forward pass of the frozen prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_multirate.backward.cached_prefix import find_prefix
from hf_multirate.model.partition import Partition
from hf_multirate.model.random_state import random_state_restored
from hf_multirate.planning.inputs import first_rows
from hf_multirate.planning.measure import loss_of


def prefix_flops(model: nn.Module, batch: Mapping[str, Any], partition: Partition) -> float:
    """FLOPs of the forward pass up to the last block whose output an activation cache keeps.

    Args:
        model: Model that returns a ``loss``.
        batch: Batch with as many rows as in training.
        partition: The rate groups with a gradient at some step.

    Raises:
        ValueError: no block is below all trained parameters.
        NotImplementedError: the blocks have cross-attention.
    """
    rows, factor = first_rows(batch)
    trained = [parameter for members in partition.parameters(model).values() for parameter in members.values()]
    counted: list[int] = []
    with random_state_restored(model.parameters()), FlopCounterMode(display=False) as counter:
        handle = find_prefix(model, trained).boundary.register_forward_hook(
            lambda *_: counted.append(counter.get_total_flops())
        )
        try:
            loss_of(model, rows)
        finally:
            handle.remove()
    return factor * counted[0]
