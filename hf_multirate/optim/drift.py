"""Drift: an idle parameter repeats the last update of its optimizer.

For SGD with momentum this is the linear drift of Algorithm 1 in Vlaar & Leimkuhler, *Multirate
Training of Neural Networks* (ICML 2022): the parameter moves along its frozen momentum. For Adam and
AdamW it moves along the frozen ratio of the two moments. Both directions are read from the state of
the optimizer. With any other optimizer, the parameter repeats the displacement of its last step. That
needs one buffer of the size of the parameter. No rule changes the state of the optimizer.
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
    """Moves the idle parameters of one torch parameter group; all stored tensors are local shards."""

    needs_snapshot: bool
    """Whether `record_step` has to be called after every step at which the parameters have a gradient."""

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """Prepare drift steps of ``parameters``.

        Args:
            parameters: The idle parameters.
            group: Their parameter group in the optimizer.
            factors: Parameter -> drift factor, a multiple of the last update.

        Returns:
            A function of the learning rate that moves the parameters by one drift step. It is valid until the next
            step of the parameters, or until their `basis` changes, and does not wait for the device. A parameter
            without a last update does not move.
        """

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """The settings and state that `prepare_drift` reads: schedules and checkpoints may change both."""

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """Inner product of each gradient with the last update: negative while the update reduces the loss.

        The update is scaled to a learning rate of 1. For a large parameter the product is an estimate from a sample.
        For a sharded parameter it is the product of the local shard, to be summed over processes.

        Returns:
            A scalar for each parameter; None without a gradient or a last update.
        """

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """Record a step that changed ``parameters`` from the values ``before``."""


class SGDDrift:
    """Drift along the momentum buffer p: theta <- theta - h p (Algorithm 1, last line).

    Coupled weight decay is part of p and frozen with it. The Nesterov look-ahead corrects a fresh
    gradient and is therefore not part of drift.
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
        return _drift_along({p: b for p in parameters if (b := self._buffer(p)) is not None}, factors, -1.0)

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """See `DriftRule`."""
        buffers = [self._optimizer.state.get(p, {}).get("momentum_buffer") for p in parameters]
        return Basis([*parameters, *buffers], [])

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `DriftRule`."""
        return [_dot(p, self._buffer(p), -sign(group)) for p in parameters]

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `DriftRule`; the state of the optimizer is sufficient."""


class DisplacementDrift:
    """Drift along the displacement of the last step, scaled by the ratio of the current and the last learning rate.

    Works with any optimizer whose step is proportional to its learning rate. Stores one buffer per
    parameter, in the dtype of the parameter. A step at learning rate zero leaves no displacement.
    """

    needs_snapshot = True

    def __init__(self) -> None:
        self.velocity: dict[Tensor, Tensor] = {}
        """Displacement per unit of learning rate at the last refresh."""

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """See `DriftRule`."""
        return _drift_along({p: self.velocity[p] for p in parameters if p in self.velocity}, factors, 1.0)

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


def _drift_along(
    updates: Mapping[Tensor, Tensor], factors: Mapping[Tensor, float], sign: float
) -> Callable[[float], None]:
    """A function of the learning rate that moves parameters along ``updates``, multiplied by ``sign``."""
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
    columns, gradient = width(parameter), local(parameter.grad)
    if gradient.is_sparse:  # of an embedding: its entries are rows, and momentum is sparse too
        gradient, dense = gradient.coalesce(), update.to_dense() if update.is_sparse else update
        update, gradient = dense[gradient.indices().unbind()], gradient.values()
    product = real(sample(gradient, columns)) * real(sample(update, columns))
    return sign * extrapolation(parameter) * product.sum(dtype=torch.float32)


SAMPLED = 1 << 15
"""Number of sampled elements of a large parameter; `COLUMNS` may require more."""

COLUMNS = 16
"""Smallest number of sampled columns: a cache line, which is read as a whole anyway."""


def width(parameter: Tensor) -> int:
    """Number of sampled columns of ``parameter``, seen as a matrix of its rows; 0 for all columns.

    For a sharded parameter it is computed from the full shape.
    """
    if parameter.dim() <= 1 or parameter.numel() <= SAMPLED:
        return 0
    columns = parameter.numel() // parameter.shape[0]
    return min(columns, max(COLUMNS, columns * SAMPLED // parameter.numel()))


def sample(tensor: Tensor, width: int) -> Tensor:
    """The first ``width`` columns of ``tensor`` (0 for all), and all rows, since few rows of an embedding are used."""
    return tensor.flatten(1)[:, :width] if width else tensor


def extrapolation(parameter: Tensor) -> float:
    """Number of elements of ``parameter`` per sampled element."""
    columns = width(parameter)
    return parameter.numel() / (parameter.shape[0] * columns) if columns else 1.0


def real(tensor: Tensor) -> Tensor:
    """``tensor``, or a view of a complex tensor with real and imaginary parts in an additional last dimension."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


@dataclass(frozen=True, eq=False)
class Basis:
    """The objects and values that a prepared drift depends on.

    Attributes:
        objects: Parameters and their optimizer state, compared by identity. The references keep them alive, so that
            no other object gets the same address.
        values: Settings of the group, step counts and layouts, compared by value.
    """

    objects: Sequence[object]
    values: Sequence[Any]

    def same(self, other: Basis | None) -> bool:
        """Whether ``other`` has the same objects and equal values."""
        if other is None or len(self.objects) != len(other.objects) or self.values != other.values:
            return False
        return all(map(operator.is_, self.objects, other.objects))


def sign(group: Mapping[str, Any]) -> float:
    """-1.0 for an optimizer with ``maximize``, else 1.0."""
    return -1.0 if group.get("maximize") else 1.0
