"""LISA and BAdam, which train some blocks at a time, as callbacks that switch ``requires_grad``."""

from __future__ import annotations

import random
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_multirate.model.stacks import find_stack


def parts_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by block of the stack, and all others as ``outside``."""
    path = find_stack(model).path
    blocks = {f"{path}.{name}": child for name, child in model.get_submodule(path).named_children()}
    parts = {name: [p for p in block.parameters() if p.requires_grad] for name, block in blocks.items()}
    inside = {id(p) for members in parts.values() for p in members}
    return {**parts, "outside": [p for p in model.parameters() if p.requires_grad and id(p) not in inside]}


class Switching(TrainerCallback):
    """Trains some parts of a model for ``interval`` steps, then others; a subclass chooses which."""

    def __init__(self, model: nn.Module, interval: int) -> None:
        self.parts = parts_of(model)
        self.interval = interval
        self.live: list[str] = []

    def choose(self, turn: int) -> list[str]:
        """Names of the parts that are trained in this turn, counted from 0."""
        raise NotImplementedError

    def left(self, parameters: list[nn.Parameter], optimizer: Any) -> None:
        """Called with parameters that are not trained any more."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Switch every ``interval`` steps."""
        if state.global_step % self.interval:
            return
        chosen = self.choose(state.global_step // self.interval)
        for name in set(self.live) - set(chosen):
            self.left(self.parts[name], kwargs["optimizer"])
        self.live = chosen
        for name, parameters in self.parts.items():
            for parameter in parameters:
                parameter.requires_grad_(name in chosen)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore ``requires_grad``."""
        for parameters in self.parts.values():
            for parameter in parameters:
                parameter.requires_grad_(True)


class LISA(Switching):
    """Trains embeddings and head at all steps, and a few blocks that are drawn every ``interval`` steps.

    Pan et al., *LISA: Layerwise Importance Sampling for Memory-Efficient LLM Fine-Tuning* (2024). The
    paper drops optimizer states to save memory. They are kept here, since memory is not compared.
    """

    def __init__(self, model: nn.Module, active: int, interval: int, seed: int) -> None:
        super().__init__(model, interval)
        self._active = active
        self._random = random.Random(seed)

    def choose(self, turn: int) -> list[str]:
        """See `Switching`."""
        del turn
        blocks = [name for name in self.parts if name != "outside"]
        return ["outside", *self._random.sample(blocks, min(self._active, len(blocks)))]


class BAdam(Switching):
    """Trains one block at a time, in random order, and drops the optimizer state of a block afterwards.

    Luo et al., *BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models* (2024).
    """

    def __init__(self, model: nn.Module, interval: int, seed: int) -> None:
        super().__init__(model, interval)
        self._random = random.Random(seed)
        self._order: list[str] = []

    def choose(self, turn: int) -> list[str]:
        """See `Switching`."""
        del turn
        if not self._order:
            self._order = self._random.sample(list(self.parts), len(self.parts))
        return [self._order.pop()]

    def left(self, parameters: list[nn.Parameter], optimizer: Any) -> None:
        """See `Switching`."""
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
