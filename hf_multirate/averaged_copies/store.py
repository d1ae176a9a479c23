"""Values and optimizer states of several copies of one model, one of which is in the model at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from hf_multirate.averaged_copies.state_check import check_copies, check_copy_states


State = dict[str, Any]
"""What an optimizer keeps about one parameter."""


class CopyStore:
    """The tensors of the copies that are not in the model, and their way into it and out.

    Args:
        model: The model; all copies begin as it is, and copy 0 is in it.
        optimizer: Its optimizer.
        count: Number of copies.

    Raises:
        ValueError: a parameter has no values to copy, or nothing is trainable.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, count: int) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = dict(model.named_buffers())
        self._tensors: dict[str, Tensor] = {**self._parameters, **self._buffers}
        _check_copyable(self._parameters, self._buffers)
        self._optimizer = optimizer
        self._values = [{name: t.detach().clone() for name, t in self._tensors.items()} for _ in range(count)]
        self._states: list[dict[nn.Parameter, State]] = [{} for _ in range(count)]
        self.shown = 0
        """The copy whose values the model has, and whose state the optimizer."""

    @torch.no_grad()
    def show(self, copy: int) -> None:
        """Exchange values and state of the copy in the model for those of ``copy``."""
        if copy == self.shown:
            return
        for name, tensor in self._tensors.items():
            self._values[self.shown][name].copy_(tensor)
            tensor.copy_(self._values[copy][name])
        state = self._optimizer.state
        for parameter in self._parameters.values():
            if parameter in state:
                self._states[self.shown][parameter] = state.pop(parameter)
            if parameter in self._states[copy]:
                state[parameter] = self._states[copy].pop(parameter)
        self.shown = copy

    @torch.no_grad()
    def average(self, merged: Sequence[int], *, momenta: str, buffers: str) -> None:
        """Give all copies in ``merged``, of which the one in the model is the first, their mean.

        Buffers of integers, such as numbers of batches, stay as they are. For ``momenta`` and ``buffers`` see
        `hf_multirate.CopiesConfig`.
        """
        for name, tensor in self._tensors.items():
            if name in self._buffers and (buffers == "keep" or not _is_continuous(tensor)):
                continue
            others = [self._values[copy][name] for copy in merged[1:]]
            for other in others:
                tensor.add_(other)
            tensor.div_(len(merged))
            for other in others:
                other.copy_(tensor)
        for parameter in self._parameters.values():
            states = [self._state(copy, parameter) for copy in merged]
            if momenta == "average":
                _average_states(states, parameter)
            elif momenta == "reset":
                for state in states:
                    state.clear()

    def _state(self, copy: int, parameter: nn.Parameter) -> State:
        states: Any = self._optimizer.state if copy == self.shown else self._states[copy]
        state: State = states.get(parameter, {})
        return state

    def state_dict(self) -> dict[str, Any]:
        """Values and states of all copies but the first, by parameter name; that one is in the model."""
        names = {parameter: name for name, parameter in self._parameters.items()}
        return {
            "values": self._values[1:],
            "states": [{names[p]: state for p, state in states.items()} for states in self._states[1:]],
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Raises:
            ValueError: it has another number of copies, or copies of another model.
        """
        check_copies(saved, self._tensors, self._parameters, len(self._values))
        known = {name: self._optimizer.state.get(p, {}) for name, p in self._parameters.items()}
        check_copy_states(saved["states"], known)
        for mine, values in zip(self._values[1:], saved["values"], strict=True):
            for name, tensor in mine.items():
                tensor.copy_(values[name])
        self._states[1:] = [
            {self._parameters[name]: _moved(state, self._parameters[name]) for name, state in states.items()}
            for states in saved["states"]
        ]


def _moved(state: Mapping[str, Any], parameter: Tensor) -> State:
    """A copy of ``state`` with tensors on the device of ``parameter``; step counts stay where they are."""
    return {
        key: value.to(parameter.device if value.dim() else value.device, copy=True)
        if isinstance(value, Tensor)
        else value
        for key, value in state.items()
    }


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _average_states(states: Sequence[State], parameter: Tensor) -> None:
    for key, value in states[0].items():
        # A count of steps has the shape of a parameter that is a scalar.
        alike = key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
        if alike and _is_continuous(value) and all(key in state for state in states):
            mean = torch.stack([state[key] for state in states]).mean(0)
            for state in states:
                state[key].copy_(mean)


def _check_copyable(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    if not parameters:
        raise ValueError("the model has no trainable parameter, so its copies would all stay the same.")
    for name, tensor in {**parameters, **buffers}.items():
        if is_lazy(tensor) or tensor.is_meta:
            raise ValueError(
                f"{name!r} cannot be copied: it has no values yet (a lazy module, or device 'meta'). Run a batch "
                "through the model, or load its weights, before it is trained."
            )
