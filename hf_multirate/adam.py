"""Drift along the last update of Adam and AdamW, read from the optimizer's state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_multirate.distributed.shards import local


CHUNK = 1 << 18
"""Elements that a CPU looks back at together: what it needs of them stays in its cache."""

SMALL = 1 << 14
"""Elements of a parameter that is looked back at together with others, to save calls."""


class AdamDrift:
    """Along u = m_hat / (sqrt(v_hat) + eps), each parameter at the step count of its own last gradient.

    Decoupled weight decay acts at every drift step, at the current learning rate. Nothing is kept. On a CPU the
    fused step of torch moves a parameter in one pass over memory; elsewhere the root of the second moment is a
    temporary the size of the parameters.
    """

    needs_snapshot = False

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def _by_count(self, parameters: Sequence[Tensor]) -> dict[float, list[Tensor]]:
        """Parameters that have been stepped, by their step count."""
        by_count: dict[float, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            state = self._optimizer.state.get(parameter)
            if state:
                by_count[float(state["step"])].append(parameter)
        return by_count

    def _moments(self, parameters: list[Tensor], group: Mapping[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        states = [self._optimizer.state[parameter] for parameter in parameters]
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        return [local(state["exp_avg"]) for state in states], [local(state[second]) for state in states]

    def drift(
        self, parameters: Sequence[Tensor], group: Mapping[str, Any], scale: float, factors: Mapping[Tensor, float]
    ) -> None:
        """See `hf_multirate.drift.DriftRule`."""
        rate = float(group["lr"]) * scale
        for count, members in self._by_count(parameters).items():
            targets = [local(parameter) for parameter in members]
            if group.get("decoupled_weight_decay") and group["weight_decay"]:
                torch._foreach_mul_(targets, 1.0 - rate * group["weight_decay"])
            epsilon, c = _corrections(count, group)
            lengths = [-sign(group) * rate * c * factors[parameter] for parameter in members]
            first, second = self._moments(members, group)
            if all(_fusible(group, *tensors) for tensors in zip(targets, first, second, strict=True)):
                _add_updates_(targets, first, second, epsilon, lengths)
            else:
                denominators = list(torch._foreach_sqrt(second))
                torch._foreach_add_(denominators, epsilon)
                torch._foreach_addcdiv_(targets, first, denominators, lengths)

    def slopes(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor | None]:
        """See `hf_multirate.drift.DriftRule`; the factor c > 0 of u is left out."""
        found: dict[Tensor, Tensor] = {}
        stepped = [parameter for parameter in parameters if parameter.grad is not None]
        for count, members in self._by_count(stepped).items():
            epsilon, _ = _corrections(count, group)
            first, second = self._moments(members, group)
            gradients = [local(parameter.grad) for parameter in members if parameter.grad is not None]
            if all(_fusible(group, *tensors) for tensors in zip(gradients, first, second, strict=True)):
                sums = _slopes(gradients, first, second, epsilon)
            else:
                updates = list(torch._foreach_sqrt(second))
                torch._foreach_add_(updates, epsilon)
                updates = list(torch._foreach_div(first, updates))
                torch._foreach_mul_(updates, gradients)
                sums = [update.sum(dtype=torch.float32) for update in updates]
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


def _fusible(group: Mapping[str, Any], *tensors: Tensor) -> bool:
    """Whether the fused step of a CPU takes these tensors, and leaves the moments as they are."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return beta1**2 < 0.99 * beta2 and all(_plain(tensor) for tensor in tensors)


def _plain(tensor: Tensor) -> bool:
    simple = tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_complex()
    return simple and tensor.dtype != torch.float64  # whose rounding is as fine as what the moment gains


def _add_updates_(
    targets: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    epsilon: float,
    lengths: Sequence[float],
) -> None:
    """Add ``length first / (sqrt(second) + epsilon)``, by a fused step that leaves both moments as they are.

    With the first moment as gradient and beta1 = 0 that moment becomes 0 m + 1 m. The second gains 2**-53 m^2,
    which is lost in rounding: m^2 is at most (1 - beta1)^2 / (1 - beta2) / (1 - beta1^2 / beta2) times as
    large, 53 by default. At so high a step count both corrections of bias are 1.
    """
    alike: dict[tuple[float, torch.dtype], list[int]] = defaultdict(list)
    for i, (target, length) in enumerate(zip(targets, lengths, strict=True)):
        alike[length, target.dtype].append(i)  # there are few different factors, and one call takes one dtype
    for (length, _), places in alike.items():
        moments = [first[i] for i in places]
        torch._fused_adamw_(
            [targets[i] for i in places], moments, moments, [second[i] for i in places], [],
            [torch.tensor(1e30)] * len(places),
            lr=-length, beta1=0.0, beta2=1.0 - 2.0**-53, weight_decay=0.0, eps=epsilon, amsgrad=False, maximize=False,
        )  # fmt: skip


def _slopes(gradients: list[Tensor], first: list[Tensor], second: list[Tensor], epsilon: float) -> list[Tensor]:
    """Inner product of each gradient with its update: of small ones together, of others chunk by chunk."""
    small = [i for i, gradient in enumerate(gradients) if gradient.numel() <= SMALL]
    updates = [torch.zeros_like(gradients[i]) for i in small]
    if small:
        ones = [1.0] * len(small)
        _add_updates_(updates, [first[i] for i in small], [second[i] for i in small], epsilon, ones)
        torch._foreach_mul_(updates, [gradients[i] for i in small])
    sums = {i: update.sum(dtype=torch.float32) for i, update in zip(small, updates, strict=True)}
    wholes = enumerate(zip(gradients, first, second, strict=True))
    return [sums[i] if i in sums else _slope(g, m, v, epsilon) for i, (g, m, v) in wholes]


def _slope(gradient: Tensor, first: Tensor, second: Tensor, epsilon: float) -> Tensor:
    scratch = torch.empty(min(CHUNK, gradient.numel()), dtype=gradient.dtype)
    parts = [torch.zeros(())]  # a process may hold no element of a small parameter
    for g, m, v in _chunks(gradient, first, second):
        update = scratch[: g.numel()].zero_()
        _add_updates_([update], [m], [v], epsilon, [1.0])
        parts.append(update.mul_(g).sum(dtype=torch.float32))
    return torch.stack(parts).sum()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat views of contiguous tensors of one shape, chunk by chunk."""
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield tuple(tensor[start : start + CHUNK] for tensor in flat)
