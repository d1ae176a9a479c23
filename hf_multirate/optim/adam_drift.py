"""Drift along the last update of Adam and AdamW, read from the optimizer's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from hf_multirate.optim.drift import Basis, extrapolation, real, sample, sign, width
from hf_multirate.optim.dtensor import local
from hf_multirate.optim.on_host import is_on_host
from hf_multirate.optim.ratio_sums import Triple, corrections_on_device, ratio_sums


@dataclass(frozen=True)
class _Batch:
    """Parameters with the same step count, drift factor and dtype, moved in one call."""

    targets: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    epsilon: float
    length: float
    """Factor on the ratio of the moments at a learning rate of 1."""
    decay: float
    counts: list[Tensor] | None
    """Step counts for the fused CPU step; None if it cannot be used."""


class AdamDrift:
    """Drift along u = m_hat / (sqrt(v_hat) + eps), with the step count of the last gradient of each parameter.

    Decoupled weight decay acts at every drift step, at the current learning rate. The rule stores nothing. On a CPU,
    the fused step of torch moves a parameter in one pass over memory. On other devices, there are temporary tensors of
    `TEMPORARY_BYTES` at once, for the roots of the second moments. The real and imaginary parts of complex parameters
    are treated as separate parameters, as in the optimizer.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def _by_count(self, parameters: Sequence[Tensor]) -> dict[float, list[Tensor]]:
        """Step count -> parameters, for the parameters with optimizer state."""
        by_count: dict[float, list[Tensor]] = defaultdict(list)
        with_state = [parameter for parameter in parameters if self._optimizer.state.get(parameter)]
        counts = _values([self._optimizer.state[p]["step"] for p in with_state])
        for parameter, count in zip(with_state, counts, strict=True):
            if count > 0:  # 0 if a gradient scaler skipped all steps so far
                by_count[count].append(parameter)
        return by_count

    def _moments(self, parameter: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        state = self._optimizer.state[parameter]
        # The maximum is missing if amsgrad was switched on after the last gradient.
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
                # Reading a count from a device would wait for it, so only its version is compared there.
                values.append(count.item() if is_on_host(count) else count._version)
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
            by_kind: dict[tuple[float, torch.dtype, bool], list[Tensor]] = defaultdict(list)
            for p in members:
                fuses = factors[p] > 0 and _fusible(group, local(p), *self._moments(p, group))
                by_kind[factors[p], p.dtype, fuses].append(p)
            for (factor, _, fuses), batch in by_kind.items():
                length = -c * factor  # also with maximize, because torch negates the gradient before the moments
                for part in [batch] if fuses else _parts(batch):
                    first, second = map(list, zip(*(self._moments(p, group) for p in part), strict=True))
                    counts = [torch.tensor(1e30)] * len(part) if fuses else None
                    batches.append(_Batch([local(p) for p in part], first, second, epsilon, length, decay, counts))

        def advance(rate: float) -> None:
            for batch in batches:
                _advance(batch, rate)

        return advance

    def gradient_update_products(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `hf_multirate.optim.drift.DriftRule`; for large parameters an estimate from a sample."""
        stepped = [p for p in parameters if p.grad is not None and self._optimizer.state.get(p)]
        counted = [p for p in stepped if is_on_host(self._optimizer.state[p]["step"])]
        products: dict[Tensor, Tensor] = {}
        for count, members in self._by_count(counted).items():
            epsilon, c = _corrections(count, group)
            sums = self._sums(members, group, epsilon)
            torch._foreach_mul_(sums, [-sign(group) * c * extrapolation(p) for p in members])
            products |= zip(members, sums, strict=True)
        # Fused optimizers keep counts on the device. Reading them would wait for all work that was sent to it.
        if others := [p for p in stepped if not is_on_host(self._optimizer.state[p]["step"])]:
            counts = torch.stack([self._optimizer.state[p]["step"] for p in others])
            epsilons, factors = corrections_on_device(counts, group)
            sums = self._sums(others, group, epsilons.unbind())
            torch._foreach_mul_(sums, list(factors.unbind()))
            torch._foreach_mul_(sums, [-sign(group) * extrapolation(p) for p in others])
            products |= zip(others, sums, strict=True)
        return [products.get(parameter) for parameter in parameters]

    def _sums(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], epsilon: float | Sequence[Tensor]
    ) -> list[Tensor]:
        """See `hf_multirate.optim.ratio_sums.ratio_sums`; for parameters with a gradient."""
        widths = [width(parameter) for parameter in parameters]
        triples: list[Triple] = []
        for parameter, columns in zip(parameters, widths, strict=True):
            first, second = (real(sample(moment, columns)) for moment in self._moments(parameter, group))
            assert parameter.grad is not None  # the caller has checked it
            triples.append((first, second, real(sample(local(parameter.grad), columns))))
        return ratio_sums(triples, [columns > 0 for columns in widths], epsilon)

    def record_step(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `hf_multirate.optim.drift.DriftRule`; the state of the optimizer is sufficient."""


TEMPORARY_BYTES = 1 << 26
"""Largest size of the temporary tensors of a drift step, unless a single parameter is larger."""


def _parts(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parts of ``parameters`` of up to `TEMPORARY_BYTES`."""
    part: list[Tensor] = []
    filled = 0
    for parameter in parameters:
        size = local(parameter).numel() * parameter.element_size()
        if part and filled + size > TEMPORARY_BYTES:
            yield part
            part, filled = [], 0
        part.append(parameter)
        filled += size
    if part:
        yield part


def _values(scalars: Sequence[Tensor]) -> list[float]:
    """Values of ``scalars``, read from each device in one call; fused optimizers keep step counts on the device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for i, scalar in enumerate(scalars):
        by_device[scalar.device].append(i)
    values = [0.0] * len(scalars)
    for indices in by_device.values():
        for i, value in zip(indices, torch.stack([scalars[i] for i in indices]).tolist(), strict=True):
            values[i] = value
    return values


def _corrections(count: float, group: Mapping[str, Any]) -> tuple[float, float]:
    """Scalars e and c with u = c m / (sqrt(v) + e), which contain the bias corrections."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    root = (1.0 - beta2**count) ** 0.5
    return float(group["eps"]) * root, root / (1.0 - beta1**count)


def _fusible(group: Mapping[str, Any], *tensors: Tensor) -> bool:
    """Whether the fused CPU step supports these tensors and leaves the moments unchanged: see `_advance`."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return beta1**2 < 0.99 * beta2 and all(_is_fusible(tensor) for tensor in tensors)


def _is_fusible(tensor: Tensor) -> bool:
    dense_real = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_complex()
    return dense_real and tensor.dtype != torch.float64  # float64 would not round off the change of the moment


def _as_real(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [real(tensor) for tensor in tensors]


def _advance(batch: _Batch, rate: float) -> None:
    """Multiply by ``1 - rate decay`` and add ``rate length first / (sqrt(second) + epsilon)``.

    The fused step leaves both moments unchanged. With the first moment as gradient and beta1 = 0, that moment becomes
    0 m + 1 m. The second moment v grows by 2**-53 m^2, which is lost in rounding. The reason: m^2 / v is at most
    (1 - beta1)^2 / (1 - beta2) / (1 - beta1^2 / beta2), which is 53 for the default betas. At the step count 1e30
    both bias corrections are 1. The weight decay is relative to the learning rate of the call.
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
