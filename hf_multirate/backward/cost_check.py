"""Compare the cost of a fast step with its prediction, once for each set of live groups."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from hf_multirate.config.schedule import Schedule
from hf_multirate.model.cost_model import Layer, StepCosts, layers_of, step_cost
from hf_multirate.model.hooks import OwnHook, tensors_in
from hf_multirate.model.setup_warnings import not_a_suffix
from hf_multirate.model.unwrap import canonical_name


logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Largest error of a prediction that is not corrected, as a share of a full step."""


@dataclass
class ForwardRecord:
    """The modules with direct parameters that ran in one forward pass.

    Attributes:
        first_call: Module -> position of its first call among the calls of all recorded modules.
        last_call: Module -> position of its last call. A block may run several times.
        with_input_gradient: Modules with an input that required a gradient.
        without_autograd: Modules that ran while autograd was off.
        calls: Number of calls so far.
    """

    first_call: dict[nn.Module, int] = field(default_factory=dict)
    last_call: dict[nn.Module, int] = field(default_factory=dict)
    with_input_gradient: set[nn.Module] = field(default_factory=set)
    without_autograd: set[nn.Module] = field(default_factory=set)
    calls: int = 0


class CostCheck:
    """Corrects the predicted costs of steps by the forward passes that it records.

    Args:
        model: The model that owns the parameters.
        groups: Rate group name -> parameter name -> parameter.
        costs: The predicted costs, corrected in place.
        schedule: The schedule for the speed-up of a whole cycle; None for single steps.
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
    def record_forward(self) -> Iterator[ForwardRecord]:
        """A context that records the forward passes of the model."""
        record = ForwardRecord()
        handles = [
            module.register_forward_pre_hook(OwnHook(_recording_hook(record), module), with_kwargs=True)
            for module in self._model.modules()
            if any(True for _ in module.parameters(recurse=False))
        ]
        try:
            yield record
        finally:
            for handle in handles:
                handle.remove()

    def check(self, live: tuple[int, ...], recorded: Sequence[str], record: ForwardRecord) -> None:
        """Compare a fast step with its prediction, and log one warning if they differ.

        Args:
            live: Indices of the live groups.
            recorded: Names of inactive modules that autograd has recorded.
            record: The forward pass of the step.
        """
        layers = layers_of(self._model)
        groups = [name for i, name in enumerate(self._groups) if i in live]
        names = {key for group in groups for key in self._groups[group]}
        everything = {key for members in self._groups.values() for key in members}
        full = step_cost(layers, everything)
        predicted = step_cost(layers, names) / full if full else 1.0
        containers = container_calls(self._model, record)
        actual = recorded_cost(layers, record, names, everything, containers)
        differs = abs(actual - predicted) > TOLERANCE
        costs_text = f"predicted cost of this step {predicted:.2f} of a full one"
        if differs:
            before = self._speedup()
            self._costs.correct(live, actual * self._costs.full)
            costs_text += f", corrected {actual:.2f}{self._change(before)}"
        if not differs:  # a norm that runs after the fast part costs nothing
            recorded = [name for name in recorded if self._has_matrix(name)]
        if recorded:
            lowest, above = self._lowest_live_module(layers, record, names, recorded, containers)
            logger.warning(not_a_suffix(recorded, above, lowest, costs_text))
        elif differs:
            lowest, _ = self._lowest_live_module(layers, record, names, (), containers)
            cause = "modules run in another order than the one in which they were registered"
            if record.without_autograd - record.first_call.keys():
                cause = "some modules, such as a teacher, run without gradients"
            logger.warning(
                "the predicted cost of a fast step was wrong because %s. With the groups %s live, backward stops at "
                "%r. %s.", cause, sorted(groups), lowest, costs_text.capitalize(),
            )  # fmt: skip

    def _has_matrix(self, name: str) -> bool:
        return any(parameter.dim() > 1 for parameter in self._model.get_submodule(name).parameters())

    def _speedup(self) -> float | None:
        return None if self._schedule is None else self._costs.speedup(self._schedule.kinds)

    def _change(self, before: float | None) -> str:
        after = self._speedup()
        return "" if before is None else f"; predicted speed-up {before:.2f}x, corrected {after:.2f}x"

    def _lowest_live_module(
        self,
        layers: Sequence[Layer],
        record: ForwardRecord,
        live: set[str],
        recorded: Sequence[str],
        containers: Mapping[nn.Module, int],
    ) -> tuple[str | None, list[str]]:
        """Name of the live module that runs first, and the modules of ``recorded`` that run after it."""
        called = {**containers, **record.first_call}
        calls = {
            layer.module: called[layer.module]
            for layer in layers
            if layer.module in called and not live.isdisjoint(layer.parameters)
        }
        if not calls:
            return None, []
        first = min(calls, key=lambda module: calls[module])
        above = []
        for name in recorded:
            parts = self._model.get_submodule(name).modules()
            if any(record.last_call.get(part, -1) > calls[first] for part in parts):
                above.append(name)
        return next(canonical_name(path) for path, module in self._model.named_modules() if module is first), above


def _recording_hook(record: ForwardRecord) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled():
            record.without_autograd.add(module)
            return
        record.first_call.setdefault(module, record.calls)
        record.last_call[module] = record.calls
        record.calls += 1
        if any(tensor.requires_grad for tensor in tensors_in((args, kwargs))):
            record.with_input_gradient.add(module)

    return hook


def container_calls(model: nn.Module, record: ForwardRecord) -> dict[nn.Module, int]:
    """Positions of containers of parameters, which many adapters of PEFT have and which are never called.

    The position of a container is that of the first call of a module beside it.
    """
    found: dict[nn.Module, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ParameterDict, nn.ParameterList)):
            continue
        parts = path.split(".")
        for length in range(len(parts) - 1, -1, -1):
            beside = model.get_submodule(".".join(parts[:length])).modules()
            calls = [record.first_call[part] for part in beside if part in record.first_call]
            if calls:
                found[module] = min(calls)
                break
    return found


def recorded_cost(
    layers: Sequence[Layer],
    record: ForwardRecord,
    live: set[str],
    trained: set[str],
    containers: Mapping[nn.Module, int] = MappingProxyType({}),
) -> float:
    """Cost of a recorded step as a share of a full step, from the inputs that required a gradient.

    A layer without a recorded call counts as predicted. A layer that ran only while autograd was off has no backward
    at any step. At a full step, the input of a layer requires a gradient if a trained layer precedes it. It has to
    precede it both in the recorded and in the predicted order.

    Args:
        layers: The layers of the model, in the predicted order.
        record: The forward pass of a step with ``live`` parameters.
        live: Names of the parameters that got a gradient.
        trained: Names of the parameters that get a gradient at a full step.
        containers: The result of `container_calls`.

    Returns:
        The share; 1.0 for a model without layers.
    """
    part = full = 0.0
    live_before = trained_before = False
    first = math.inf  # first call of a trained layer so far
    for layer in layers:
        call = record.first_call.get(layer.module)
        if call is None and layer.module in record.without_autograd:  # such as a teacher
            part += layer.forward
            full += layer.forward
            continue
        input_gradient = live_before if call is None else layer.module in record.with_input_gradient
        input_gradient_if_full = input_gradient or (trained_before if call is None else first < call)
        part += layer.forward * (1 + (not layer.matrices.isdisjoint(live)) + input_gradient)
        full += layer.forward * (1 + (not layer.matrices.isdisjoint(trained)) + input_gradient_if_full)
        live_before = live_before or not live.isdisjoint(layer.parameters)
        if not trained.isdisjoint(layer.parameters):
            trained_before, first = True, min(first, containers.get(layer.module, math.inf) if call is None else call)
    return part / full if full else 1.0
