"""Drift along the last update of Adam and AdamW, read from the optimizer's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


CHUNK = 1 << 15
"""Elements that a CPU handles at a time: what it needs of them stays in its second cache."""


class AdamDrift:
    """Along u = m_hat / (sqrt(v_hat) + eps), each parameter at the step count of its own last gradient.

    Decoupled weight decay acts at every drift step, at the current learning rate. Nothing is kept. The root of
    the second moment is a temporary: of one chunk on a CPU, where memory is what a drift step waits for, and the
    size of the parameters on an accelerator, where launching few kernels matters more.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def _by_count(self, parameters: Sequence[Tensor]) -> dict[tuple[float, bool], list[Tensor]]:
        """Parameters that have been stepped, by their step count and by whether they are on a CPU."""
        by_count: dict[tuple[float, bool], list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            state = self._optimizer.state.get(parameter)
            if state:
                by_count[float(state["step"]), parameter.device.type == "cpu"].append(parameter)
        return by_count

    def _moments(self, parameters: list[Tensor], group: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        states = [self._optimizer.state[parameter] for parameter in parameters]
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        return [state["exp_avg"] for state in states], [state[second] for state in states]

    def drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, factors: Mapping[Tensor, float]
    ) -> None:
        """See `hf_multirate.drift.DriftRule`."""
        rate = float(group["lr"]) * scale
        for (count, on_cpu), members in self._by_count(parameters).items():
            if group.get("decoupled_weight_decay") and group["weight_decay"]:
                torch._foreach_mul_(members, 1.0 - rate * group["weight_decay"])
            epsilon, c = _corrections(count, group)
            lengths = [-sign(group) * rate * c * factors[parameter] for parameter in members]
            first, second = self._moments(members, group)
            if on_cpu:
                for whole in zip(members, first, second, lengths, strict=True):
                    for p, m, v in _chunks(*whole[:3]):
                        p.addcdiv_(m, v.sqrt().add_(epsilon), value=whole[3])
                continue
            denominators = list(torch._foreach_sqrt(second))
            torch._foreach_add_(denominators, epsilon)
            torch._foreach_addcdiv_(members, first, denominators, lengths)

    def slopes(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `hf_multirate.drift.DriftRule`; the factor c > 0 of u is left out."""
        found: dict[Tensor, Tensor] = {}
        stepped = [parameter for parameter in parameters if parameter.grad is not None]
        for (count, on_cpu), members in self._by_count(stepped).items():
            epsilon, _ = _corrections(count, group)
            first, second = self._moments(members, group)
            gradients = [parameter.grad for parameter in members if parameter.grad is not None]
            if on_cpu:
                wholes = zip(gradients, first, second, strict=True)
                sums = [_sum((m / v.sqrt().add_(epsilon)).mul_(g) for g, m, v in _chunks(*whole)) for whole in wholes]
            else:
                updates = list(torch._foreach_sqrt(second))
                torch._foreach_add_(updates, epsilon)
                updates = list(torch._foreach_div(first, updates))
                torch._foreach_mul_(updates, gradients)
                sums = [_sum((update,)) for update in updates]
            found |= {p: -sign(group) * total for p, total in zip(members, sums, strict=True)}
        return [found.get(parameter) for parameter in parameters]

    def keep(self, parameters: Sequence[Tensor], before: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """See `hf_multirate.drift.DriftRule`: the optimizer keeps all that is needed."""


def sign(group: Mapping[str, Any]) -> float:
    """-1 for an optimizer that maximises."""
    return -1.0 if group.get("maximize") else 1.0


def _corrections(count: float, group: Mapping[str, Any]) -> tuple[float, float]:
    """Terms e and c such that u = c m / (sqrt(v) + e): the corrections of bias, taken out of the tensors."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    root = (1.0 - beta2**count) ** 0.5
    return group["eps"] * root, root / (1.0 - beta1**count)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, chunk by chunk; the tensors themselves where there is no flat view."""
    if not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in flat)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack([part.sum(dtype=torch.float32) for part in parts]).sum()
