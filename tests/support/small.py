"""A network of a few neurons, a batch for each step, and its gradient as a function of plain tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.reference import Gradient, Tensors


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.BatchNorm1d(10), nn.Linear(10, 5), nn.Tanh(), nn.Linear(5, 3))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)


def values(model: nn.Module) -> Tensors:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def gradient_of(model: nn.Module) -> Gradient:
    def gradient(n: int, theta: Tensors) -> Tensors:
        leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        inputs, labels = batch(n)
        loss = nn.functional.cross_entropy(torch.func.functional_call(model, leaves, inputs.double()), labels)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    return gradient
