"""How much work each block is, counted at the first steps: the same on every machine and at every run.

Seconds would be closer to what a user pays, but no two runs have the same, and a plan made from them would differ
from run to run. So work is counted in products of weights, times how often the shapes of the batches of a step use
each, and what the optimizer does to an element is set to a number of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_multirate.model.cost_model import Layer, costs_by_depth, layers_of
from hf_multirate.model.hooks import OwnHook
from hf_multirate.model.unwrap import canonical_name, canonical_parameters


MATRIX = 2

UPDATE = 128.0
"""Products that take as long as one element's step of the optimizer, which waits for memory: on a core of a CPU."""


UNSEEN = 512.0
"""Positions of a step where shapes are not seen: eight texts of 64 tokens."""


class CountedWork:
    """Counts in forward passes with gradients how many positions each module works on in a step.

    Every call within a pass of the whole model counts, and none outside of it, where calls are those of activations
    that are recomputed. Of a model that is never called as a whole each module counts once in a micro-batch.

    Args:
        model: The model.
        watch: Whether to look; False for a compiled model, where a step is taken to have `UNSEEN` positions.
    """

    def __init__(self, model: nn.Module, *, watch: bool) -> None:
        self._model = model
        self.positions: dict[str, float] = {}
        """Sums over `steps`, of modules that were seen."""
        self.steps = 0
        """Steps that this has looked at."""
        self.updates: list[float] = []
        """What one step of the optimizer takes for each group, as a share of a full step."""
        self._watch = watch
        self._passed: set[str] = set()
        self._looking = self._inside = self._whole = False
        self._hooks: list[Any] = []

    def look(self, *, full: bool = True) -> None:
        """A step begins; this looks at it if it is a full one, of which no part runs without gradients."""
        self._looking = full
        self.steps += full
        if not full or not self._watch or self._hooks:
            return
        for name, module in self._model.named_modules():
            matrices = [p for p in module.parameters(recurse=False) if p.dim() > 1]
            if matrices and not isinstance(module, nn.Embedding):
                noting = OwnHook(self._noting(canonical_name(name), matrices[0].dim()), module)
                self._hooks.append(module.register_forward_hook(noting))
        # The hook of a model that is one matrix comes before the one that ends its pass.
        enter, leave = OwnHook(self._enter, self._model), OwnHook(self._leave, self._model)
        self._hooks.append(self._model.register_forward_pre_hook(enter))
        self._hooks.append(self._model.register_forward_hook(leave, always_call=True))

    def next_pass(self) -> None:
        """A micro-batch begins."""
        self._passed.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        del module, args
        self._inside = torch.is_grad_enabled()
        self._whole = self._whole or self._inside

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args, output
        self._inside = False

    def _counts(self, name: str) -> bool:
        if not self._looking:
            return False
        if self._whole:
            return self._inside
        return torch.is_grad_enabled() and name not in self._passed

    def _noting(self, name: str, dimensions: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del args
            first = output[0] if isinstance(output, tuple) and output else output
            if not self._counts(name) or not isinstance(first, Tensor) or not first.dim():
                return
            channels = first.shape[1 if first.dim() == dimensions > MATRIX else -1]
            self._passed.add(name)
            self.positions[name] = self.positions.get(name, 0.0) + first.numel() / max(1, channels)

        return hook

    def stop(self) -> None:
        """Look no longer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def settle(self, processes: dist.ProcessGroup | None) -> None:
        """Come to the same in all ``processes``, which call it together."""
        self.positions = _mean(self.positions, processes)

    def by_depth(self, groups: Sequence[Sequence[str]], processes: dist.ProcessGroup | None) -> list[float]:
        """Work of a step, as a share of a full one, with none of ``groups`` live, with the first, and so on.

        Args:
            groups: Names of parameters, from the top of the model down.
            processes: Those that have to come to the same; all of them call it.
        """
        self.settle(processes)
        positions = {name: value / max(1, self.steps) for name, value in self.positions.items()}
        sizes = {name: parameter.numel() for name, parameter in canonical_parameters(self._model).items()}
        layers = _used(self._model, layers_of(self._model), positions)
        updates = [UPDATE * sum(sizes[name] for name in names) for names in groups]
        totals = accumulate(updates, initial=0.0)
        found = [cost + updated for cost, updated in zip(costs_by_depth(layers, groups), totals, strict=True)]
        self.updates = [work / found[-1] for work in updates]
        return [work / found[-1] for work in found]


def _used(model: nn.Module, layers: Sequence[Layer], positions: Mapping[str, float]) -> list[Layer]:
    """``layers`` with their work times the positions of their module: of one that was not seen, those around it."""
    names = {module: canonical_name(name) for name, module in model.named_modules()}
    usual = sum(positions.values()) / len(positions) if positions else UNSEEN

    def at(name: str) -> float:
        while name and name not in positions:
            name = name.rpartition(".")[0]
        return positions.get(name, usual)

    return [replace(layer, forward=layer.forward * at(names[layer.module])) for layer in layers]


def _mean(positions: Mapping[str, float], processes: dist.ProcessGroup | None) -> dict[str, float]:
    """The mean over processes, whose batches differ in shape."""
    if processes is None:
        return dict(positions)
    gathered: list[dict[str, float]] = [{} for _ in range(processes.size())]
    dist.all_gather_object(gathered, dict(positions), group=processes)
    shared = [name for name in gathered[0] if all(name in theirs for theirs in gathered)]
    return {name: sum(theirs[name] for theirs in gathered) / len(gathered) for name in shared}
