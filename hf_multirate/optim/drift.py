"""How an idle parameter moves: along the last update that its optimizer made.

For SGD with momentum this is the linear drift of Algorithm 1 of Vlaar & Leimkuhler, *Multirate
Training of Neural Networks* (ICML 2022): the parameter follows its frozen momentum. For Adam and
AdamW it follows the frozen ratio of the two moments. Both directions are read from the optimizer's
state. Any other optimizer repeats the displacement of its last step, which costs one buffer the
size of the parameter. No rule changes the optimizer's state.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_multirate.optim.dtensor import local


class DriftRule(Protocol):
    """Moves idle parameters of one torch parameter group; values ``before`` and all it keeps are those of shards."""

    needs_snapshot: bool
    """Whether `record_step` has to be called around every step that gives the parameters a gradient."""

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """What moves each of ``parameters`` by its factor times its last update, at a given learning rate.

        It holds until the parameters take their next step or their `basis` changes, and does not ask the device for
        anything. A parameter without an update stays.
        """

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """What a `prepare_drift` is made from: settings may follow a schedule, and state may be replaced."""

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """Inner product of each gradient with the last update: negative where the update still goes downhill.

        The update is that of a learning rate of 1, and of a large parameter it is an estimate from a sample. Of a
        sharded parameter it is that of the shard, to be summed over processes.
        """

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """Take note of a step that moved ``parameters`` from the values ``before``."""


class SGDDrift:
    """Along the momentum buffer p: theta <- theta - h p (Algorithm 1, last line).

    Coupled weight decay is part of p and frozen with it. Nesterov's look-ahead is a correction to a
    fresh gradient, so it has no part in a drift.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def _buffer(self, parameter: Tensor) -> Tensor | None:
        buffer: Tensor | None = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
        return None if buffer is None else local(buffer)

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """See `DriftRule`."""
        return _course({p: b for p in parameters if (b := self._buffer(p)) is not None}, factors, -1.0)

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """See `DriftRule`."""
        buffers = [self._optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
        return Basis([*parameters, *buffers], [])

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `DriftRule`."""
        return [_dot(p, self._buffer(p), -sign(group)) for p in parameters]

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`: the optimizer keeps all that is needed."""


class DisplacementDrift:
    """Along the displacement of the last step, scaled by the ratio of the learning rates now and then.

    Works for any optimizer whose step is proportional to its learning rate, and holds one buffer per
    parameter, in the parameter's dtype. A step at learning rate zero leaves no displacement.
    """

    needs_snapshot = True

    def __init__(self) -> None:
        self.velocity: dict[Tensor, Tensor] = {}
        """Displacement per unit of learning rate at the last refresh."""

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """See `DriftRule`."""
        return _course({p: self.velocity[p] for p in parameters if p in self.velocity}, factors, 1.0)

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """See `DriftRule`."""
        return Basis([*parameters, *map(self.velocity.get, parameters)], [])

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `DriftRule`."""
        return [_dot(p, self.velocity.get(p), sign(group)) for p in parameters]

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`."""
        rate = float(group["lr"])
        if rate == 0:
            self.forget(parameters)
            return
        velocities = torch._foreach_sub([local(parameter) for parameter in parameters], list(before))
        torch._foreach_mul_(velocities, 1.0 / rate)
        self.velocity.update(zip(parameters, velocities, strict=True))

    def forget(self, parameters: Sequence[Tensor]) -> None:
        """Drop the displacements of ``parameters``."""
        for parameter in parameters:
            self.velocity.pop(parameter, None)


def _course(updates: Mapping[Tensor, Tensor], factors: Mapping[Tensor, float], sign: float) -> Callable[[float], None]:
    """Along ``updates``, which are those of a learning rate of ``sign``."""
    grouped: dict[float, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
    for parameter, update in updates.items():
        targets, directions = grouped[factors[parameter]]
        targets.append(local(parameter))
        directions.append(update)

    def advance(rate: float) -> None:
        for factor, (targets, directions) in grouped.items():
            torch._foreach_add_(targets, directions, alpha=sign * rate * factor)

    return advance


def _dot(parameter: Tensor, update: Tensor | None, sign: float) -> Tensor | None:
    if update is None or parameter.grad is None:
        return None
    columns = width(parameter)
    product = real(sample(local(parameter.grad), columns)) * real(sample(update, columns))
    return sign * extrapolation(parameter) * product.sum(dtype=torch.float32)


def scale_last_step_(parameters: Sequence[Tensor], before: Sequence[Tensor], factor: float) -> None:
    """Make the step from ``before`` to the present values of ``parameters`` ``factor`` times as long."""
    targets = [local(parameter) for parameter in parameters]
    torch._foreach_add_(targets, torch._foreach_sub(targets, list(before)), alpha=factor - 1.0)


SAMPLED = 1 << 15
"""Elements of a parameter that are looked back at, as far as `COLUMNS` allows."""

COLUMNS = 16
"""Least number of columns looked back at: a line of a cache, which is read as a whole anyway."""


def width(parameter: Tensor) -> int:
    """How many columns of ``parameter``, as a matrix of its rows, are looked back at; 0 for all of them.

    It follows from the whole shape of a sharded parameter.
    """
    if parameter.dim() <= 1 or parameter.numel() <= SAMPLED:
        return 0
    columns = parameter.numel() // parameter.shape[0]
    return min(columns, max(COLUMNS, columns * SAMPLED // parameter.numel()))


def sample(tensor: Tensor, width: int) -> Tensor:
    """The first ``width`` columns, 0 for all: all rows, because those of an embedding are rarely in use."""
    return tensor.flatten(1)[:, :width] if width else tensor


def extrapolation(parameter: Tensor) -> float:
    """Elements of ``parameter`` for each that is looked at."""
    columns = width(parameter)
    return parameter.numel() / (parameter.shape[0] * columns) if columns else 1.0


def real(tensor: Tensor) -> Tensor:
    """A view of ``tensor`` with real and imaginary parts in a dimension of their own, if it is complex."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(frozen=True, eq=False)
class Basis:
    """Tensors that have to be the same objects, and values that have to be equal.

    Attributes:
        objects: Parameters and what the optimizer keeps for them. They are held, so that no other object gets the
            address of one.
        values: Settings of the group, step counts, layouts.
    """

    objects: Sequence[object]
    values: Sequence[Any]

    def same(self, other: Basis | None) -> bool:
        """Whether nothing has changed since ``other``."""
        if other is None or len(self.objects) != len(other.objects) or self.values != other.values:
            return False
        return all(map(operator.is_, self.objects, other.objects))


def sign(group: Mapping[str, Any]) -> float:
    """-1 for an optimizer that maximises."""
    return -1.0 if group.get("maximize") else 1.0
