"""Count what a step does: floating-point operations by torch's own counter, and the activations that it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


WEIGHTED = ("mm", "addmm", "convolution")
"""Operations that multiply by a weight: the gradient of it costs as much once more."""


@dataclass(frozen=True)
class Count:
    """Work of one step on a whole batch.

    Attributes:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        weighted: Module name -> FLOPs of its own products with weights in the forward pass.
        kept: Bytes of activations kept for backward.
    """

    forward: float
    backward: float
    weighted: Mapping[str, float]
    kept: float

    @property
    def total(self) -> float:
        """FLOPs of forward and backward."""
        return self.forward + self.backward


def count(model: nn.Module, part: Any, times: float) -> Count:
    """Run forward and backward of ``part`` as the model is now; gradients are gone afterwards.

    Args:
        model: Returns an object with a ``loss``.
        part: Its inputs, by name.
        times: Factor from ``part`` to the whole batch.

    Raises:
        ValueError: the model returns no loss.
    """
    kept: dict[int, int] = {}
    owned = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with FlopCounterMode(display=False) as forward:
            loss = loss_of(model, part)
        memory = sum(kept.values())
        with FlopCounterMode(display=False) as backward:
            torch.autograd.backward(loss)
    for parameter in model.parameters():
        parameter.grad = None
    return Count(
        times * forward.get_total_flops(),
        times * backward.get_total_flops(),
        {name: times * flops for name, flops in _own(forward.get_flop_counts(), type(model).__name__).items()},
        times * memory,
    )


def loss_of(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of ``batch``.

    Raises:
        ValueError: the model returns none, or one of more than one number.
    """
    return loss_in(model(**batch), type(model).__name__, batch)


def loss_in(output: Any, name: str, batch: Mapping[str, Any]) -> Tensor:
    """The loss in what a model of class ``name`` returned for ``batch``: see `loss_of`."""
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple):  # as of a model with return_dict=False
        loss = output[0] if output else None
    else:
        try:
            loss = output.loss
        except AttributeError:
            loss = None
    if not isinstance(loss, Tensor) or not loss.is_floating_point():
        raise ValueError(f"{name} returns no loss for a batch of {sorted(batch)}: give it labels.")
    if loss.numel() != 1:
        raise ValueError(f"{name} returns a loss of shape {tuple(loss.shape)}: return one number, such as its mean.")
    return loss


def _own(counts: Mapping[str, Mapping[Any, int]], root: str) -> dict[str, float]:
    """Products with weights by module, without those of the modules inside of it."""
    named = {name.removeprefix(root).removeprefix("."): by for name, by in counts.items() if name != "Global"}
    totals = {name: sum(n for op, n in by.items() if str(op).split(".")[-1] in WEIGHTED) for name, by in named.items()}
    own = {name: float(total) for name, total in totals.items()}
    for name, total in totals.items():
        parent = name.rpartition(".")[0]
        while name and parent not in totals:
            parent = parent.rpartition(".")[0]
        if name:
            own[parent] -= total
    return own
