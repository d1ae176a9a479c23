"""Values and optimizer states of several copies of one model. The model contains one copy at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from hf_multirate.averaged_copies.state_check import check_copies, check_copy_states
from hf_multirate.model.unwrap import canonical_name, canonical_parameters
from hf_multirate.optim.optimizer_check import require_real_state


State = dict[str, Any]
"""Optimizer state of one parameter."""


class CopyStore:
    """Stores the tensors of the copies, and exchanges the copy that the model contains.

    Args:
        model: The model. All copies start with its values, and it contains copy 0.
        optimizer: The optimizer of the model.
        count: Number of copies.

    Raises:
        ValueError: a parameter has no values, or no parameter is trainable.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, count: int) -> None:
        self._parameters = {name: p for name, p in canonical_parameters(model).items() if p.requires_grad}
        self._buffers = {canonical_name(name): buffer for name, buffer in model.named_buffers()}
        self._tensors: dict[str, Tensor] = {**self._parameters, **self._buffers}
        _check_copyable(self._parameters, self._buffers)
        self._optimizer = optimizer
        self._values = [{name: t.detach().clone() for name, t in self._tensors.items()} for _ in range(count)]
        self._states: list[dict[nn.Parameter, State]] = [{} for _ in range(count)]
        self.shown = 0
        """Index of the copy whose values the model contains, and whose state the optimizer holds."""

    @torch.no_grad()
    def show(self, copy: int) -> None:
        """Put the values and the optimizer state of ``copy`` into the model and its optimizer."""
        if copy == self.shown:
            return
        for names in _by_kind(self._tensors):
            tensors = [self._tensors[name] for name in names]
            torch._foreach_copy_([self._values[self.shown][name] for name in names], tensors)
            torch._foreach_copy_(tensors, [self._values[copy][name] for name in names])
        state = self._optimizer.state
        for parameter in self._parameters.values():
            if parameter in state:
                self._states[self.shown][parameter] = state.pop(parameter)
            if parameter in self._states[copy]:
                state[parameter] = self._states[copy].pop(parameter)
        self.shown = copy

    @torch.no_grad()
    def average(self, merged: Sequence[int], *, momenta: str, buffers: str) -> None:
        """Replace copies by their mean. Integer buffers, such as numbers of batches, do not change.

        Args:
            merged: Indices of the copies. The first is the one that the model contains.
            momenta: See `hf_multirate.CopiesConfig`.
            buffers: See `hf_multirate.CopiesConfig`.

        Raises:
            ValueError: momenta have integers, which have no mean.
        """
        averaged = {
            name: tensor
            for name, tensor in self._tensors.items()
            if name not in self._buffers or (buffers != "keep" and _is_continuous(tensor))
        }
        for names in _by_kind(averaged):
            tensors = [averaged[name] for name in names]
            others = [[self._values[copy][name] for name in names] for copy in merged[1:]]
            for other in others:
                torch._foreach_add_(tensors, other)
            torch._foreach_div_(tensors, float(len(merged)))
            for other in others:
                torch._foreach_copy_(other, tensors)
        for parameter in self._parameters.values():
            states = [self._state(copy, parameter) for copy in merged]
            if momenta == "average":
                _average_states(states, parameter, self._optimizer)
            elif momenta == "reset":
                for state in states:
                    state.clear()

    def _state(self, copy: int, parameter: nn.Parameter) -> State:
        states: Any = self._optimizer.state if copy == self.shown else self._states[copy]
        state: State = states.get(parameter, {})
        return state

    def state_dict(self) -> dict[str, Any]:
        """Values and optimizer states of all copies except the first one, which the model contains."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        return {
            "values": self._values[1:],
            "states": [{names[p]: state for p, state in states.items()} for states in self._states[1:]],
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load a `state_dict`.

        Raises:
            ValueError: ``saved`` has another number of copies, or belongs to another model.
        """
        check_copies(saved, self._tensors, self._parameters, len(self._values))
        present_states = {name: self._optimizer.state.get(p, {}) for name, p in self._parameters.items()}
        check_copy_states(saved["states"], present_states)
        for tensors, values in zip(self._values[1:], saved["values"], strict=True):
            for name, tensor in tensors.items():
                tensor.copy_(values[name])
        by_parameter = {p: group for group in self._optimizer.param_groups for p in group["params"]}
        self._states[1:] = [
            {
                self._parameters[name]: on_device(state, p := self._parameters[name], by_parameter.get(p, {}))
                for name, state in states.items()
            }
            for states in saved["states"]
        ]


def on_device(state: Mapping[str, Any], parameter: Tensor, settings: Mapping[str, Any]) -> State:
    """A copy of the optimizer state of ``parameter`` with tensors on the device where the optimizer needs them.

    As in ``load_state_dict`` of torch, the entry ``step`` is on the device of the parameter only if the optimizer is
    fused or capturable. All other tensors are there, moments of a scalar parameter too.

    Args:
        state: The state, which may be on another device.
        parameter: The parameter.
        settings: The parameter group of the optimizer.
    """
    counts_on_device = settings.get("fused") or settings.get("capturable")
    return {
        key: value.to(value.device if key == "step" and not counts_on_device else parameter.device, copy=True)
        if isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }


def _by_kind(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of tensors by device and dtype: torch handles such tensors in one call on a GPU."""
    kinds: dict[object, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        kinds[tensor.device, tensor.dtype].append(name)
    return list(kinds.values())


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _average_states(states: Sequence[State], parameter: Tensor, optimizer: Optimizer) -> None:
    for key, value in states[0].items():
        # A step count has the same shape as a scalar parameter, so it is excluded by its name. Other numbers that
        # depend on the step, such as the products of NAdam, have no dimension.
        is_moment = key != "step" and isinstance(value, Tensor) and (value.dim() or value.shape == parameter.shape)
        if is_moment and all(key in state and state[key].shape == value.shape for state in states):
            require_real_state({key: value}, optimizer, "momenta='average' of copies needs its mean")
            mean = torch.stack([state[key] for state in states]).mean(0)
            for state in states:
                state[key].copy_(mean)


def _check_copyable(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    if not parameters:
        raise ValueError(
            "the model has no trainable parameter, so its copies would not differ. Set requires_grad=True for the "
            "parameters to train."
        )
    for name, tensor in {**parameters, **buffers}.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(
                f"{name!r} cannot be copied, because it has no values yet (a lazy module, or device 'meta'). Run a "
                "batch through the model, or load its weights, before training."
            )
