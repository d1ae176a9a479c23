"""Inner products of gradients with updates of Adam, for many parameters in few calls.

On a GPU, a call takes longer than the work on a small tensor. So all whole tensors share their calls. Slices, which
torch would treat one by one, are put together first if they have the same shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


Triple = tuple[Tensor, Tensor, Tensor]
"""First moment, second moment and gradient of one parameter."""


def ratio_sums(triples: Sequence[Triple], sliced: Sequence[bool], epsilon: float | Sequence[Tensor]) -> list[Tensor]:
    """Sum of ``gradient first / (sqrt(second) + epsilon)`` over the elements of each parameter, without a wait.

    Args:
        triples: The moments and the gradient of each parameter.
        sliced: Whether they are slices, for each parameter.
        epsilon: One number, or a scalar tensor for each parameter.
    """
    kinds: dict[object, list[int]] = defaultdict(list)
    for i, triple in enumerate(triples):
        kinds[tuple((tensor.shape, tensor.dtype) for tensor in triple) if sliced[i] else None].append(i)
    sums: dict[int, Tensor] = {}
    for kind, places in kinds.items():
        first, second, gradients = map(list, zip(*(triples[i] for i in places), strict=True))
        own = epsilon if isinstance(epsilon, float) else [epsilon[i] for i in places]
        products = _listed(first, second, gradients, own) if kind is None else _stacked(first, second, gradients, own)
        sums |= {i: product.sum(dtype=torch.float32) for i, product in zip(places, products, strict=True)}
    return [sums[i] for i in range(len(triples))]


def _listed(
    first: list[Tensor], second: list[Tensor], gradients: list[Tensor], epsilon: float | list[Tensor]
) -> Sequence[Tensor]:
    updates = list(torch._foreach_sqrt(second))
    torch._foreach_add_(updates, epsilon)
    updates = list(torch._foreach_div(first, updates))
    torch._foreach_mul_(updates, gradients)
    return updates


def _stacked(
    first: list[Tensor], second: list[Tensor], gradients: list[Tensor], epsilon: float | list[Tensor]
) -> Sequence[Tensor]:
    roots = torch.stack(second).sqrt_()
    roots += epsilon if isinstance(epsilon, float) else torch.stack(epsilon).view(-1, *(1,) * (roots.dim() - 1))
    return (torch.stack(first) / roots).mul_(torch.stack(gradients)).unbind()


def corrections_on_device(counts: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The scalars of `hf_multirate.optim.adam_drift.AdamDrift`, from step counts on a device: one for each parameter.

    They are NaN for the count 0, which a gradient scaler leaves if it has skipped all steps so far.
    """
    first, second = (-torch.expm1(counts * _log(float(beta))) for beta in group["betas"])
    root = second.sqrt()
    return group["eps"] * root, root / first


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0.0 else -math.inf
