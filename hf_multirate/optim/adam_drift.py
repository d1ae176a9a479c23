"""Drift along the last update of Adam and AdamW, read from the optimizer's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from hf_multirate.optim.drift import Basis, extrapolation, real, sample, sign, width
from hf_multirate.optim.dtensor import local


@dataclass(frozen=True)
class _Batch:
    """Parameters that one call moves: alike in step count, factor and dtype."""

    targets: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    epsilon: float
    length: float
    """Factor on the ratio of the moments, for a learning rate of 1."""
    decay: float
    counts: list[Tensor] | None
    """Step counts for the fused step of a CPU, which then is in use."""


class AdamDrift:
    """Along u = m_hat / (sqrt(v_hat) + eps), each parameter at the step count of its own last gradient.

    Decoupled weight decay acts at every drift step, at the current learning rate. Nothing is kept. On a CPU the
    fused step of torch moves a parameter in one pass over memory; elsewhere the root of the second moment is a
    temporary the size of the parameters. Of complex numbers, real and imaginary part are parameters of their own, as
    in the optimizer.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def _by_count(self, parameters: Sequence[Tensor]) -> dict[float, list[Tensor]]:
        """Parameters that have been stepped, by their step count."""
        by_count: dict[float, list[Tensor]] = defaultdict(list)
        known = [parameter for parameter in parameters if self._optimizer.state.get(parameter)]
        for parameter, count in zip(known, _fetched([self._optimizer.state[p]["step"] for p in known]), strict=True):
            if count > 0:  # 0 where a gradient scaler skipped all steps so far
                by_count[count].append(parameter)
        return by_count

    def _moments(self, parameter: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        state = self._optimizer.state[parameter]
        # There is no maximum yet where amsgrad was turned on since the last gradient.
        largest = state.get("max_exp_avg_sq") if group["amsgrad"] else None
        return local(state["exp_avg"]), local(state["exp_avg_sq"] if largest is None else largest)

    def _decay(self, group: Mapping[str, Any]) -> float:
        decoupled = isinstance(self._optimizer, AdamW) or group.get("decoupled_weight_decay")
        return float(group["weight_decay"]) if decoupled else 0.0

    def basis(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> Basis:
        """See `hf_multirate.optim.drift.DriftRule`."""
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        objects: list[object] = [*parameters]
        values: list[Any] = [[float(beta) for beta in group["betas"]], group["eps"], self._decay(group)]
        for parameter in parameters:
            values += (parameter.dtype, parameter.is_contiguous())
            if state := self._optimizer.state.get(parameter):
                count = state["step"]
                objects += (state["exp_avg"], state["exp_avg_sq"], state.get(second), count)
                # To fetch it from elsewhere would wait for the device: only whether it was written to is known.
                values.append(count.item() if count.is_cpu else count._version)
            else:
                objects.append(None)
        return Basis(objects, values)

    def prepare_drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], factors: Mapping[Tensor, float]
    ) -> Callable[[float], None]:
        """See `hf_multirate.optim.drift.DriftRule`."""
        decay = self._decay(group)
        batches = []
        for count, members in self._by_count(parameters).items():
            epsilon, c = _corrections(count, group)
            alike: dict[tuple[float, torch.dtype, bool], list[Tensor]] = defaultdict(list)
            for p in members:
                fuses = factors[p] > 0 and _fusible(group, local(p), *self._moments(p, group))
                alike[factors[p], p.dtype, fuses].append(p)
            for (factor, _, fuses), some in alike.items():
                first, second = map(list, zip(*(self._moments(p, group) for p in some), strict=True))
                counts = [torch.tensor(1e30)] * len(some) if fuses else None
                length = -c * factor  # with maximize too: torch turns the gradient round before it goes into a moment
                batches.append(_Batch([local(p) for p in some], first, second, epsilon, length, decay, counts))

        def advance(rate: float) -> None:
            for batch in batches:
                _advance(batch, rate)

        return advance

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `hf_multirate.optim.drift.DriftRule`; of a large parameter it is an estimate from a sample."""
        found: dict[Tensor, Tensor] = {}
        stepped = [parameter for parameter in parameters if parameter.grad is not None]
        for count, members in self._by_count(stepped).items():
            epsilon, c = _corrections(count, group)
            widths = [width(parameter) for parameter in members]
            moments = [self._moments(parameter, group) for parameter in members]
            first, second = ([sample(pair[i], w) for pair, w in zip(moments, widths, strict=True)] for i in (0, 1))
            gradients = [sample(local(p.grad), w) for p, w in zip(members, widths, strict=True) if p.grad is not None]
            first, second, gradients = map(_as_real, (first, second, gradients))
            updates = list(torch._foreach_sqrt(second))
            torch._foreach_add_(updates, epsilon)
            updates = list(torch._foreach_div(first, updates))
            torch._foreach_mul_(updates, gradients)
            found |= {
                p: -sign(group) * c * extrapolation(p) * u.sum(dtype=torch.float32)
                for p, u in zip(members, updates, strict=True)
            }
        return [found.get(parameter) for parameter in parameters]

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `hf_multirate.optim.drift.DriftRule`: the optimizer keeps all that is needed."""


def _fetched(scalars: Sequence[Tensor]) -> list[float]:
    """Their values, from each device at once: a fused optimizer keeps its step counts beside the parameters."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for i, scalar in enumerate(scalars):
        by_device[scalar.device].append(i)
    values = [0.0] * len(scalars)
    for indices in by_device.values():
        for i, value in zip(indices, torch.stack([scalars[i] for i in indices]).tolist(), strict=True):
            values[i] = value
    return values


def _corrections(count: float, group: Mapping[str, Any]) -> tuple[float, float]:
    """Terms e and c such that u = c m / (sqrt(v) + e): the corrections of bias, taken out of the tensors."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    root = (1.0 - beta2**count) ** 0.5
    return group["eps"] * root, root / (1.0 - beta1**count)


def _fusible(group: Mapping[str, Any], *tensors: Tensor) -> bool:
    """Whether the fused step of a CPU takes these tensors, and leaves the moments as they are."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return beta1**2 < 0.99 * beta2 and all(_plain(tensor) for tensor in tensors)


def _plain(tensor: Tensor) -> bool:
    simple = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_complex()
    return simple and tensor.dtype != torch.float64  # whose rounding is as fine as what the moment gains


def _as_real(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [real(tensor) for tensor in tensors]


def _advance(batch: _Batch, rate: float) -> None:
    """Shrink by ``1 - rate decay`` and add ``rate length first / (sqrt(second) + epsilon)``.

    The fused step leaves both moments as they are: with the first moment as gradient and beta1 = 0 that moment becomes
    0 m + 1 m. The second gains 2**-53 m^2, which is lost in rounding: m^2 is at most
    (1 - beta1)^2 / (1 - beta2) / (1 - beta1^2 / beta2) times as large, 53 by default. At so high a step count both
    corrections of bias are 1. Its weight decay is in units of the learning rate that it is given.
    """
    if batch.counts is not None:
        torch._fused_adamw_(
            batch.targets, batch.first, batch.first, batch.second, [], batch.counts,
            lr=-rate * batch.length, beta1=0.0, beta2=1.0 - 2.0**-53, weight_decay=-batch.decay / batch.length,
            eps=batch.epsilon, amsgrad=False, maximize=False,
        )  # fmt: skip
        return
    targets, first, second = map(_as_real, (batch.targets, batch.first, batch.second))
    if batch.decay:
        torch._foreach_mul_(targets, 1.0 - rate * batch.decay)
    denominators = list(torch._foreach_sqrt(second))
    torch._foreach_add_(denominators, batch.epsilon)
    torch._foreach_addcdiv_(targets, first, denominators, rate * batch.length)
