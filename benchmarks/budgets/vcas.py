"""Sampled backward of VCAS (Wang et al., ICLR 2024, arXiv 2402.17227): samples by block, tokens by linear layer.

- At the output of each block, rows of the batch are kept with a probability in proportion to the norm of their
  gradient, and divided by it. Backward below works on kept rows only.
- The weight gradient of a linear layer is a sum over tokens. Tokens are kept with a probability in proportion to the
  product of the norms of gradient and input (their leverage score), and divided by it.

Both leave the mean of every gradient as it is. Attention and normalization run on all rows: they are the smaller part.
`benchmarks.budgets.vcas_control` chooses the ratios. Written from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_multirate.model.stacks import find_stack


def keep_probabilities(norms: Tensor, ratio: float) -> Tensor:
    """Probabilities in proportion to ``norms``, at most 1, which sum to ``ratio`` times their number.

    Args:
        norms: Non-negative, of shape (n,).
        ratio: Share of the n items that are kept on average.

    Returns:
        Shape (n,): 0 where the norm is 0, and 1 for all others if they are fewer than ``ratio * n``.
    """
    wanted, certain = ratio * norms.numel(), norms <= 0
    certain = torch.zeros_like(certain) if int((~certain).sum()) > wanted else torch.ones_like(certain)
    while True:
        rest = norms.masked_fill(certain, 0.0)
        total = rest.sum()
        if not float(total) > 0:
            break
        probabilities = rest * ((wanted - certain.sum()) / total)
        over = probabilities > 1
        if not bool(over.any()):
            return probabilities.masked_fill(certain, 1.0)
        certain = certain | over
    return (certain & (norms > 0)).to(norms.dtype)


@dataclass
class Work:
    """Products that backward of the linear layers did, of those of the exact one."""

    done: float = 0.0
    exact: float = 0.0

    @property
    def share(self) -> float:
        """Share of the exact work; 1 before any."""
        return self.done / self.exact if self.exact else 1.0


@dataclass
class Measured:
    """Collected in a backward pass for the control of the ratios.

    Attributes:
        norms: Block -> gradient norms of the rows of its output.
        variances: Linear layer -> variance of its weight gradient that tokens would add at their present ratio.
    """

    norms: dict[int, Tensor] = field(default_factory=dict)
    variances: dict[int, float] = field(default_factory=dict)


class SampledBackward:
    """Replaces backward of the blocks of ``model`` by a sampled one, in training mode.

    Args:
        model: An encoder of texts, with blocks of linear layers.
        seed: Seed of the draws. They take no numbers from the generator of torch.

    Attributes:
        rows: Ratio of kept rows at the output of each block, from the bottom up.
        tokens: Ratio of kept tokens of each linear layer.
        linears: The linear layers, from the bottom up.
        work: Work since it was replaced by a new one.
        measured: None, or what the control wants to know.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        blocks = list(find_stack(model).module.children())
        self.linears = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
        self.rows = [1.0] * len(blocks)
        self.tokens = [1.0] * len(self.linears)
        self.work = Work()
        self.measured: Measured | None = None
        self.samples_tokens = True
        self._kept: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)
        for index, block in enumerate(blocks):
            block.register_forward_hook(partial(self._sample, index))
        for index, linear in enumerate(self.linears):
            linear.forward = partial(self._linear, linear, index)
        model.register_forward_pre_hook(lambda module, inputs: setattr(self, "_kept", None))

    def _sample(self, index: int, block: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return _SampleRows.apply(output, self, index) if block.training and torch.is_grad_enabled() else None

    def _linear(self, linear: nn.Linear, index: int, x: Tensor) -> Tensor:
        if not (linear.training and torch.is_grad_enabled()):
            return functional.linear(x, linear.weight, linear.bias)
        return _SampledLinear.apply(x, linear.weight, linear.bias, self, index)

    def _drawn(self, probabilities: Tensor) -> Tensor:
        return torch.rand(probabilities.shape, generator=self._generator) < probabilities

    def sampled_rows(self, block: int, gradient: Tensor) -> Tensor:
        """The gradient of a block's output (batch, tokens, width), with rows drawn."""
        norms = gradient.flatten(1).norm(dim=1)
        if self.measured is not None:
            self.measured.norms[block] = norms
        if self.rows[block] >= 1:
            return gradient
        probabilities = keep_probabilities(norms, self.rows[block])
        drawn = self._drawn(probabilities)
        self._kept = drawn.nonzero().squeeze(1)
        factors = torch.where(drawn, 1 / probabilities.clamp_min(1e-30), 0.0)
        return gradient * factors.view(-1, *[1] * (gradient.dim() - 1))

    def of_kept_rows(self, *tensors: Tensor) -> list[Tensor]:
        """The rows of a batch that are kept below the last sampled block."""
        return list(tensors) if self._kept is None else [tensor[self._kept] for tensor in tensors]

    def scattered(self, rows: Tensor, like: Tensor) -> Tensor:
        """Rows of kept ones at their place in a batch, of which the others are zero."""
        return rows if self._kept is None else torch.zeros_like(like).index_copy_(0, self._kept, rows)

    def weight_gradient(self, layer: int, gradient: Tensor, x: Tensor) -> Tensor:
        """Gradient (outputs, inputs) from those of tokens (tokens, outputs) and inputs (tokens, inputs)."""
        ratio = self.tokens[layer]
        if ratio >= 1 or not len(x):
            return gradient.T @ x
        scores = gradient.norm(dim=1) * x.norm(dim=1)
        probabilities = keep_probabilities(scores, ratio)
        if self.measured is not None:
            added = (scores.square() * (1 / probabilities.clamp_min(1e-30) - 1))[probabilities > 0]
            self.measured.variances[layer] = float(added.sum())
        if not self.samples_tokens:
            return gradient.T @ x
        kept = self._drawn(probabilities).nonzero().squeeze(1)
        return (gradient[kept] / probabilities[kept, None]).T @ x[kept]

    def count(self, layer: int, kept: float) -> None:
        """Add the work of a layer of which a share ``kept`` of the rows was left."""
        size = self.linears[layer].weight.numel()
        self.work.exact += 2 * size
        self.work.done += size * kept * (1 + self.tokens[layer])


class _SampleRows(torch.autograd.Function):
    """The identity; its backward draws rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sampled: SampledBackward, block: int) -> Tensor:
        ctx.sampled, ctx.block = sampled, block
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.sampled.sampled_rows(ctx.block, gradients[0]), None, None


class _SampledLinear(torch.autograd.Function):
    """A linear layer; its backward works on kept rows, and on drawn tokens for the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sampled: SampledBackward, layer: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sampled, ctx.layer = sampled, layer
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        sampled, layer = ctx.sampled, ctx.layer
        rows, inputs = sampled.of_kept_rows(gradients[0], x)
        sampled.count(layer, len(rows) / len(x))
        below = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            below = sampled.scattered(rows @ weight, x)
        if ctx.needs_input_grad[1]:
            of_weight = sampled.weight_gradient(layer, rows.flatten(0, -2), inputs.flatten(0, -2))
        if ctx.needs_input_grad[2]:
            of_bias = rows.flatten(0, -2).sum(0)
        return below, of_weight, of_bias, None, None
