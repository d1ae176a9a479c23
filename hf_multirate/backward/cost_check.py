"""Whether a fast step costs what the cost model predicts: seen once for each set of live groups."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_multirate.config.schedule import Schedule
from hf_multirate.model.cost_model import Layer, StepCosts, layers_of, step_cost
from hf_multirate.model.hooks import OwnHook, tensors_in
from hf_multirate.model.setup_warnings import not_a_suffix
from hf_multirate.model.unwrap import canonical_name


logger = logging.getLogger(__name__)

MATERIAL = 0.1
"""Share of a full step by which a prediction has to be off before it is corrected."""


@dataclass
class Passage:
    """What ran in one forward pass.

    Attributes:
        turns: Module with parameters of its own -> number of its first pass among those of all of them.
        needing: Those of which an input required a gradient.
        last: As ``turns``, for its last pass: blocks may run several times.
        without: Those that ran while autograd was off.
        passes: Passes so far.
    """

    turns: dict[nn.Module, int] = field(default_factory=dict)
    needing: set[nn.Module] = field(default_factory=set)
    last: dict[nn.Module, int] = field(default_factory=dict)
    without: set[nn.Module] = field(default_factory=set)
    passes: int = 0


class CostCheck:
    """Predicted costs of steps, corrected by what is seen of them.

    Args:
        model: The model that owns the parameters.
        groups: Rate group name -> parameter name -> parameter.
        costs: Predicted costs, which are corrected.
        schedule: For the speed-up of a whole cycle; None where periods may change, or for single steps.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        costs: StepCosts,
        schedule: Schedule | None = None,
    ) -> None:
        self._model = model
        self._groups = groups
        self._costs = costs
        self._schedule = schedule

    @contextmanager
    def watched(self) -> Iterator[Passage]:
        """While it is open, forward passes with gradients are noted."""
        passage = Passage()
        handles = [
            module.register_forward_pre_hook(OwnHook(_noting(passage), module), with_kwargs=True)
            for module in self._model.modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        try:
            yield passage
        finally:
            for handle in handles:
                handle.remove()

    def check(self, live: tuple[int, ...], recorded: Sequence[str], passage: Passage) -> None:
        """Compare a fast step with its prediction, and log one line if they differ.

        Args:
            live: Indices of the live groups.
            recorded: Names of idle modules that autograd has recorded.
            passage: What was seen of the step.
        """
        layers = layers_of(self._model)
        groups = [name for i, name in enumerate(self._groups) if i in live]
        names = {key for group in groups for key in self._groups[group]}
        everything = {key for members in self._groups.values() for key in members}
        full = step_cost(layers, everything)
        predicted = step_cost(layers, names) / full if full else 1.0
        seen = seen_cost(layers, passage, names, everything)
        material = abs(seen - predicted) > MATERIAL
        figures = f"predicted cost of this step {predicted:.2f} of a full one"
        if material:
            before = self._speedup()
            self._costs.correct(live, seen)
            figures += f", corrected {seen:.2f}{self._change(before)}"
        if not material:  # a norm that runs after the fast part costs nothing
            recorded = [name for name in recorded if self._has_matrix(name)]
        if recorded:
            lowest, above = self._lowest(layers, passage, names, recorded)
            logger.warning(not_a_suffix(recorded, above, lowest, figures))
        elif material:
            lowest, _ = self._lowest(layers, passage, names, ())
            cause = "from the order in which modules were registered, but they run in another order"
            if passage.without - passage.turns.keys():
                cause = "for modules that ran without gradients too, such as a teacher"
            logger.warning(
                "backward was predicted %s: with %s live it stops at %r. %s.",
                cause, sorted(groups), lowest, figures.capitalize(),
            )  # fmt: skip

    def _has_matrix(self, name: str) -> bool:
        return any(parameter.dim() > 1 for parameter in self._model.get_submodule(name).parameters())

    def _speedup(self) -> float | None:
        return None if self._schedule is None else self._costs.speedup(self._schedule.kinds)

    def _change(self, before: float | None) -> str:
        after = self._speedup()
        return "" if before is None else f"; predicted speed-up {before:.2f}x, corrected {after:.2f}x"

    def _lowest(
        self, layers: Sequence[Layer], passage: Passage, live: set[str], recorded: Sequence[str]
    ) -> tuple[str | None, list[str]]:
        """The live module that runs first, and those of ``recorded`` that run after it."""
        turns = {
            layer.module: passage.turns[layer.module]
            for layer in layers
            if layer.module in passage.turns and not live.isdisjoint(layer.parameters)
        }
        if not turns:
            return None, []
        first = min(turns, key=lambda module: turns[module])
        above = []
        for name in recorded:
            parts = self._model.get_submodule(name).modules()
            if any(passage.last.get(part, -1) > turns[first] for part in parts):
                above.append(name)
        return next(canonical_name(path) for path, module in self._model.named_modules() if module is first), above


def _noting(passage: Passage) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            passage.without.add(module)
            return
        passage.turns.setdefault(module, passage.passes)
        passage.last[module] = passage.passes
        passage.passes += 1
        if any(tensor.requires_grad for tensor in tensors_in((args, kwargs))):
            passage.needing.add(module)

    return hook


def seen_cost(layers: Sequence[Layer], passage: Passage, live: set[str], trained: set[str]) -> float:
    """Cost of a step as a share of a full one, from the inputs that required a gradient.

    A layer that never ran, or ran outside of its module, counts as predicted; one that ran only while autograd was off
    has no backward at any step. At a full step the input of a layer
    requires a gradient if a trained layer is before it both in the order of the step and as predicted.

    Args:
        layers: Those of the model, in the predicted order.
        passage: What was seen of a step with ``live`` parameters.
        live: Names of parameters that got a gradient.
        trained: Names of parameters that get one at a full step.
    """
    part = full = 0.0
    live_before = trained_before = False
    first = math.inf  # turn of the first trained layer so far
    for layer in layers:
        turn = passage.turns.get(layer.module)
        if turn is None and layer.module in passage.without:  # such as a teacher
            part += layer.forward
            full += layer.forward
            continue
        needs = live_before if turn is None else layer.module in passage.needing
        fed = needs or (trained_before if turn is None else first < turn)
        part += layer.forward * (1 + (not layer.matrices.isdisjoint(live)) + needs)
        full += layer.forward * (1 + (not layer.matrices.isdisjoint(trained)) + fed)
        live_before = live_before or not live.isdisjoint(layer.parameters)
        if not trained.isdisjoint(layer.parameters):
            trained_before, first = True, min(first, math.inf if turn is None else turn)
    return part / full if full else 1.0
