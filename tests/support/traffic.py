"""Count what a process hands to collective operations, step by step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback


# Place of the tensor that holds all processes' shares, among the inputs of each operation.
COLLECTIVES = {
    "gloo:all_reduce": ("all_reduce", 0),
    "gloo:broadcast": ("broadcast", 0),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
}


class Traffic(TrainerCallback):
    """Elements by collective, from the beginning of each optimizer step until its gradients are there.

    What the norm of the gradients needs under FSDP is left out by way of ``max_grad_norm=0``.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, int]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self._profile.__enter__()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """See `TrainerCallback`."""
        self._profile.__exit__(None, None, None)
        found: Counter[str] = Counter()
        inside = ""
        for event in self._profile.events():
            if event.name.startswith("c10d::"):
                inside = event.name
            # Gloo scatters what it has reduced as a whole: that counts once.
            if event.name in COLLECTIVES and not (event.name == "gloo:all_reduce" and "scatter" in inside):
                name, place = COLLECTIVES[event.name]
                found[name] += math.prod(event.input_shapes[place])
        self.steps.append(dict(found))


def reference(slow: Callable[[str], bool], period: int) -> TrainerCallback:
    """Plain training in which gradients of ``slow`` parameters are thrown away but at every ``period``-th step."""

    class Drop(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % period:
                for name, parameter in kwargs["model"].named_parameters():
                    if slow(name):
                        parameter.grad = None

    return Drop()
