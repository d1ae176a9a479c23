"""Count what a step does: floating-point operations by torch's own counter, and the activations that it keeps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Schedule
from hf_multirate.controller.multirate import Multirate


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


ROUNDS = 5
"""How often each kind of step is timed, after one round that warms up."""


def seconds_of(model: nn.Module, batch: Mapping[str, Any], config: MultirateConfig) -> dict[Live, float]:
    """Median seconds of a step with each set of live groups, and under the empty set of one of standard training.

    Kinds take turns, so that none has a faster machine. The optimizer is AdamW at learning rate zero, which moves
    nothing.
    """
    kinds = {live: config.schedule.example(live) for live in kinds_of(config.schedule)}
    found: dict[Live, list[float]] = defaultdict(list)
    with torch.random.fork_rng():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
        for turn in range(ROUNDS + 1):
            seconds: dict[Live, float] = {(): _timed(model, batch, optimizer)}
            with Multirate(config).attach(model, optimizer) as controller:
                for live, step in kinds.items():
                    for _ in range(2):  # as most steps of a kind follow one of the same
                        controller.begin_step(step)
                        seconds[live] = _timed(model, batch, optimizer)
            for live, value in seconds.items():
                if turn:
                    found[live].append(value)
    return {live: median(values) for live, values in found.items()}


def _timed(model: nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    torch.autograd.backward(loss_of(model, batch))
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


Live = tuple[int, ...]
"""Indices of the groups that get a gradient."""

MOST_KINDS = 128
"""Each kind of step is run: with more of them planning would not end."""


def kinds_of(schedule: Schedule) -> dict[Live, int]:
    """Each set of live groups, the full step first, and how many of a cycle's steps have it.

    >>> kinds_of(Schedule((1, 2, 3)))
    {(0, 1, 2): 1, (0, 2): 1, (0, 1): 2, (0,): 2}

    Raises:
        ValueError: there are more than `MOST_KINDS`.
    """
    if len(schedule.kinds) > MOST_KINDS:
        raise ValueError(
            f"the periods {sorted(set(schedule.periods))} make more than {MOST_KINDS} kinds of steps: give fewer "
            "of them, or each a multiple of the one before."
        )
    return schedule.kinds
