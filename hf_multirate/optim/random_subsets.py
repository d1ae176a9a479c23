"""Hold random subsets of the weights at zero for a while: regularisation by time scales.

Vlaar & Leimkuhler, *Multirate Training of Neural Networks* (ICML 2022), random subgroups: a subset of
the weights is zero for the fast steps of a cycle, is then put back, takes one step as long as the
cycle, and another subset is drawn. The stored values are in the parameters at all times but during
forward and backward of a micro-batch, so that nobody ever saves or evaluates the zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.random_subset import RandomSubset
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Step
from hf_multirate.model.step_part import StepPart


@dataclass
class _Group:
    """One rate group with a random subset: the parameters that can be zero, and the last draw."""

    index: int
    rate_group: RateGroup
    subset: RandomSubset
    members: dict[str, nn.Parameter]
    drawn: int | None = None
    masks: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    def masks_of(self, index: int) -> dict[nn.Parameter, Tensor]:
        if index != self.drawn:
            self.masks = {p: draw(self.subset, index, name, p) for name, p in self.members.items()}
            self.drawn = index
        return self.masks


class RandomSubsets(StepPart):
    """The random subsets of all rate groups that have one.

    Args:
        config: The rate groups.
        optimizer: Their optimizer; tensors of its state that have the shape of their parameter are split as the
            parameter is. A state of another shape, such as the factors of Adafactor, is not.
        groups: Rate group name -> parameter name -> parameter.

    Raises:
        ValueError: no parameter of such a group can be in its subset.
    """

    def __init__(
        self, config: MultirateConfig, optimizer: Optimizer, groups: Mapping[str, Mapping[str, nn.Parameter]]
    ) -> None:
        self._optimizer = optimizer
        self._cycles = config.cycles
        self._groups = [
            _Group(index, group, group.random_subset, _members(group, group.random_subset, groups[group.name]))
            for index, group in enumerate(config.groups)
            if group.random_subset is not None
        ]
        self._before: list[tuple[Tensor, Tensor, Tensor]] = []
        self._long: list[tuple[nn.Parameter, Tensor, Tensor, float]] = []

    def _since_refresh(self, group: _Group, step: int) -> tuple[int, int]:
        """Number of the last refresh of ``group``, and steps since then."""
        return self._cycles.last_refresh(group.index, step), self._cycles.steps_since_refresh(group.index, step)

    def _held(self, step: int) -> Iterator[tuple[nn.Parameter, Tensor, float]]:
        """Parameters with a subset that is held at ``step``, its mask, and the factor on all the rest."""
        for group in self._groups:
            index = group.subset.held(*self._since_refresh(group, step))
            if index is not None:
                for parameter, mask in group.masks_of(index).items():
                    if parameter.requires_grad:  # it may have been frozen since
                        yield parameter, mask, group.subset.scale

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool = False) -> Iterator[None]:
        """Hold the subsets of ``step`` at zero while a micro-batch runs forward and backward.

        Their gradients are zero too, before anything clips or reduces them.
        """
        del last
        stored: list[tuple[nn.Parameter, Tensor]] = []
        hooks: list[Any] = []
        try:
            for parameter, mask, scale in self._held(step.index):
                stored.append((parameter, parameter.detach().clone()))
                hooks.append(parameter.register_hook(_masked(mask, scale)))  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    parameter.masked_fill_(mask, 0.0).mul_(scale)
            yield
        finally:
            for hook in hooks:
                hook.remove()
            with torch.no_grad():
                for parameter, value in stored:
                    parameter.copy_(value)

    @torch.no_grad()
    def before_step(self, step: Step) -> bool:
        """Remember what the optimizer must not change at ``step``, and where steps have to be longer."""
        self._before = []
        for parameter, mask, _ in self._held(step.index):
            self._before += [(tensor, mask, tensor.clone()) for tensor in [parameter, *self._state_of(parameter)]]
        self._long = []
        for group in self._groups:
            index = group.subset.returning(*self._since_refresh(group, step.index))
            if index is not None and group.rate_group.period > 1:
                factor = float(group.rate_group.period)
                for parameter, mask in group.masks_of(index).items():
                    self._long.append((parameter, mask, parameter.detach().clone(), factor))
        return True

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Put back what was held, and lengthen the step of what returns. Not called for a step that was skipped."""
        known = {id(tensor) for tensor, _, _ in self._before}
        for tensor, mask, before in self._before:
            tensor.copy_(torch.where(mask, before, tensor))
        for parameter, mask, _ in self._held(step.index):
            for tensor in self._state_of(parameter):
                if id(tensor) not in known:  # made by this very step
                    tensor.masked_fill_(mask, 0.0)
        for parameter, mask, before, factor in self._long:
            parameter.copy_(torch.where(mask, before + factor * (parameter - before), parameter))
        self._before, self._long = [], []

    def _state_of(self, parameter: nn.Parameter) -> list[Tensor]:
        state = self._optimizer.state.get(parameter, {})
        return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


def _members(
    group: RateGroup, subset: RandomSubset, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    members = {name: parameter for name, parameter in parameters.items() if can_hold(subset, parameter)}
    if not members:
        raise ValueError(
            f"rate group {group.name!r} holds a subset at zero, but none of its {len(parameters)} parameters can be "
            f"in it: all have one dimension or one row, e.g. {list(parameters)[:3]}. Set biases=True, or give the "
            "group matrices."
        )
    return members


def _masked(mask: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        if gradient.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {tuple(mask.shape)} has a subset held at zero and a sparse gradient: build its "
                "embedding with sparse=False, or leave it to another rate group."
            )
        return gradient.masked_fill(mask, 0.0).mul_(scale)

    return hook


def can_hold(subset: RandomSubset, parameter: Tensor) -> bool:
    """Whether ``parameter`` can be in ``subset``: matrices always, vectors with ``biases``, scalars never.

    Nor can the only neuron of a layer: a subset never has all of them.
    """
    rows = 2 if subset.unit == "neuron" else 1
    return (parameter.dim() > 1 or (parameter.dim() == 1 and subset.biases)) and parameter.shape[0] >= rows


def draw(subset: RandomSubset, index: int, name: str, parameter: Tensor) -> Tensor:
    """Draw number ``index`` of the weights of one parameter.

    With unit ``element`` each weight is in by itself, with probability ``fraction``. With unit ``neuron`` the
    nearest whole number of rows is, the same rows in all parameters of a module, and never all of them.

    Args:
        subset: What to draw.
        index: Number of the draw, from 0.
        name: Name of the parameter in the model.
        parameter: Tensor whose shape and device the mask gets.

    Returns:
        A bool tensor of the parameter's shape, on its device: True in the subset.
    """
    if subset.unit == "element":
        drawn = torch.rand(parameter.shape, generator=_generator(subset.seed, index, name)) < subset.fraction
        return drawn.to(parameter.device)
    rows = parameter.shape[0]
    count = min(max(round(subset.fraction * rows), 1), rows - 1)
    chosen = torch.zeros(rows, dtype=torch.bool)
    order = torch.randperm(rows, generator=_generator(subset.seed, index, name.rpartition(".")[0]))
    chosen[order[:count]] = True
    columns = (1,) * (parameter.dim() - 1)
    return chosen.view(rows, *columns).expand(parameter.shape).to(parameter.device)


def _generator(seed: int, index: int, key: str) -> torch.Generator:
    # Neighbouring seeds of a generator may begin alike, and hash() differs from process to process.
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
