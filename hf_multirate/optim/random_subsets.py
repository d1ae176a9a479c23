"""Random subsets: regularisation by setting a random subset of the weights to zero for a cycle.

The method is "random subgroups" in Vlaar & Leimkuhler, *Multirate Training of Neural Networks* (ICML
2022). A subset of the weights is zero at the fast steps of a cycle. Then it gets its values back,
takes one long step, and a new subset is drawn. The parameters contain the zeros only during forward
and backward of a micro-batch. At all other times, e.g. for a checkpoint, they have their values.
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
from hf_multirate.optim.optimizer_check import require_real_state


@dataclass
class _Group:
    """One rate group with a random subset.

    Attributes:
        index: Index of the rate group.
        rate_group: Its settings.
        subset: Settings of its random subset.
        members: Name -> parameter, for the parameters that can be in the subset.
        drawn: Number of the last draw.
        masks: Masks of the last draw, True in the subset.
    """

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
    """Sets the random subsets of all rate groups that have one to zero, and restores them.

    Args:
        config: The rate groups.
        optimizer: Their optimizer. State tensors with the shape of their parameter are masked like the parameter.
            State of another shape, such as the factors of Adafactor, is not.
        groups: Rate group name -> parameter name -> parameter.

    Raises:
        ValueError: no parameter of a group with a random subset can be in the subset.
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
        self._before: list[tuple[nn.Parameter, Tensor, dict[str | None, Tensor]]] = []
        """Parameters with a subset, their masks, and copies of their values (key None) and state."""
        self._long: list[tuple[nn.Parameter, Tensor, Tensor, float]] = []

    def _since_refresh(self, group: _Group, step: int) -> tuple[int, int]:
        """Number of the last refresh of ``group``, and the steps since that refresh."""
        return self._cycles.last_refresh(group.index, step), self._cycles.steps_since_refresh(group.index, step)

    def _held(self, step: int) -> Iterator[tuple[nn.Parameter, Tensor, float]]:
        """Parameters with weights that are zero at ``step``, their mask, and the factor on the other weights."""
        for group in self._groups:
            index = group.subset.held(*self._since_refresh(group, step))
            if index is not None:
                for parameter, mask in group.masks_of(index).items():
                    if parameter.requires_grad:  # it may have been frozen during training
                        yield parameter, mask, group.subset.scale

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool = False) -> Iterator[None]:
        """A context for forward and backward of a micro-batch in which the subsets of ``step`` are zero.

        The gradients of the subsets are zero before they are reduced or clipped.
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
        """Store the weights that the optimizer must not change at ``step``, and those with a long step."""
        self._before = []
        for parameter, mask, _ in self._held(step.index):
            tensors = {None: parameter, **self._state_of(parameter)}
            self._before.append((parameter, mask, {key: tensor.detach().clone() for key, tensor in tensors.items()}))
        self._long = []
        for group in self._groups:
            index = group.subset.returning(*self._since_refresh(group, step.index))
            if index is not None and group.rate_group.steps > 1:
                factor = float(group.rate_group.steps)
                for parameter, mask in group.masks_of(index).items():
                    self._long.append((parameter, mask, parameter.detach().clone(), factor))
        return True

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Restore the weights of subsets, and lengthen the step of weights whose subset ends."""
        del step
        for parameter, mask, saved in self._before:
            # The optimizer may have replaced the tensors of its state.
            for key, tensor in {None: parameter, **self._state_of(parameter)}.items():
                old = saved.get(key)
                tensor.copy_(torch.where(mask, 0.0 if old is None else old, tensor))  # None: created by this step
        for parameter, mask, before, factor in self._long:
            parameter.copy_(torch.where(mask, before + factor * (parameter - before), parameter))
        self._before, self._long = [], []

    def _state_of(self, parameter: nn.Parameter) -> dict[str | None, Tensor]:
        """State tensors with the shape of ``parameter``.

        Raises:
            ValueError: such a tensor has integers, whose value 0 may stand for another number.
        """
        state = self._optimizer.state.get(parameter, {})
        found = {key: v for key, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}
        require_real_state(found, self._optimizer, "random subsets set a part of it to zero")
        return found


def _members(
    group: RateGroup, subset: RandomSubset, parameters: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    members = {name: parameter for name, parameter in parameters.items() if can_hold(subset, parameter)}
    if not members:
        raise ValueError(
            f"rate group {group.name!r} has a random subset, but none of its {len(parameters)} parameters can be in "
            f"it: all have one dimension or one row, e.g. {list(parameters)[:3]}. Set biases=True, or add matrices to "
            "the group."
        )
    return members


def _masked(mask: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    def hook(gradient: Tensor) -> Tensor:
        if gradient.layout != torch.strided:
            raise ValueError(
                f"a parameter of shape {tuple(mask.shape)} has a random subset and a sparse gradient, which do not "
                "work together. Create its embedding with sparse=False, or assign it to another rate group."
            )
        return gradient.masked_fill(mask, 0.0).mul_(scale)

    return hook


def can_hold(subset: RandomSubset, parameter: Tensor) -> bool:
    """Whether ``parameter`` can be in ``subset``: matrices always, vectors with ``biases``, scalars never.

    A layer with a single neuron is excluded for unit ``neuron``, because a subset never has all rows.
    """
    rows = 2 if subset.unit == "neuron" else 1
    return (parameter.dim() > 1 or (parameter.dim() == 1 and subset.biases)) and parameter.shape[0] >= rows


def draw(subset: RandomSubset, index: int, name: str, parameter: Tensor) -> Tensor:
    """Draw the random subset of one parameter.

    With unit ``element``, each weight is drawn independently with probability ``fraction``. With unit ``neuron``,
    ``fraction`` of the rows are drawn, rounded to at least one row and at most all rows but one. The rows are the same
    in all parameters of a module.

    Args:
        subset: Settings of the subset.
        index: Number of the draw, from 0.
        name: Name of the parameter in the model.
        parameter: The parameter.

    Returns:
        A bool tensor with the shape and on the device of ``parameter``: True in the subset.
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
    # Generators with similar seeds may be correlated, and hash() differs between processes.
    digest = hashlib.blake2b(f"{seed}/{index}/{key}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
