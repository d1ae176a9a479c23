"""Variance control of VCAS (Wang et al., ICLR 2024): ratios follow the variance that sampling adds.

At every ``frequency``-th step a probe compares sampled gradients with exact ones, on the last two batches:

- V, the variance of the gradient over batches, which training has anyway;
- the variance that sampled rows add, which stays below a share of V;
- the variance that sampled tokens add in each linear layer, which stays below a share of V of that layer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from benchmarks.budgets.vcas import Measured, SampledBackward, Work


BATCHES = 2
"""Batches of a probe, and sampled gradients of each."""

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the exact backward work: a step has the kind of the nearest one."""

PROBE = "probe"

Gradients = Sequence[Tensor]


@dataclass(frozen=True)
class Pace:
    """How ratios follow the variances.

    The paper has 0.025, 0.01 and 0.95, for runs of thousands of steps. The changes are larger here, so that the ratios
    arrive within a run of a few hundred steps.

    Attributes:
        tolerance: Added variance as a share of the variance over batches, for rows and for tokens.
        row_step: Change of the kept share of the gradient norm at a probe.
        token_factor: Factor on the ratio of kept tokens at a probe.
    """

    tolerance: float = 0.025
    row_step: float = 0.05
    token_factor: float = 0.8


class VCAS(TrainerCallback):
    """Samples the backward pass of ``model``, and adapts the ratios at probes.

    Args:
        model: An encoder of texts.
        frequency: Steps between two probes; 0 for none.
        seed: Seed of the draws.
        pace: How the ratios are adapted.
        share: Fixed ratio of kept rows at all blocks, to time steps; None adapts it.
    """

    def __init__(
        self,
        model: nn.Module,
        frequency: int,
        seed: int,
        pace: Pace = Pace(),
        share: float | None = None,
    ) -> None:
        self.sampled = SampledBackward(model, seed)
        self.aside: list[tuple[str, float, float]] = []
        """Kind, process seconds and wall seconds of what came between steps."""
        self.norm_share = 1.0
        self._model, self._frequency, self._share = model, frequency, share
        self._pace = pace
        self._batches: deque[dict[str, Any]] = deque(maxlen=BATCHES)
        self._probing = False
        self._last_share = 1.0
        if share is not None:
            self.sampled.rows = [share] * len(self.sampled.rows)
        model.register_forward_pre_hook(self._keep, with_kwargs=True)

    @property
    def kind(self) -> str:
        """Kind of the last step: the nearest of `SHARES`, or the fixed one."""
        share = self._share or min(SHARES, key=lambda share: abs(share - self._last_share))
        return f"share {share:g}"

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Probe before every ``frequency``-th step, from the first with enough batches on."""
        due = self._frequency and state.global_step and state.global_step % self._frequency == 0
        if due and len(self._batches) == BATCHES:
            begun = time.process_time(), time.perf_counter()
            self.probe()
            self.aside.append((PROBE, time.process_time() - begun[0], time.perf_counter() - begun[1]))
        self.sampled.work = Work()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the work of the step."""
        self._last_share = self.sampled.work.share

    def probe(self) -> None:
        """Measure the variances on the last batches, and adapt the ratios."""
        self._probing = True
        try:
            with torch.random.fork_rng(devices=[]):
                self._adapt()
        finally:
            self._probing, self.sampled.measured, self.sampled.samples_tokens = False, None, True

    def _keep(self, module: nn.Module, inputs: Any, kwargs: dict[str, Any]) -> None:
        if module.training and torch.is_grad_enabled() and not self._probing:
            self._batches.append(kwargs)

    def _adapt(self) -> None:
        sampled, pace, names = self.sampled, self._pace, [id(linear.weight) for linear in self.sampled.linears]
        parameters = [p for p in self._model.parameters() if p.requires_grad]
        index = {id(p): i for i, p in enumerate(parameters)}
        exact, norms = self._exact(parameters)
        over_batches = [_variance(found) for found in zip(*exact, strict=True)]
        rows, tokens = self._added(parameters, exact)
        total = sum(over_batches)
        self.norm_share -= pace.row_step * (1 if rows < pace.tolerance * total else -1)
        self.norm_share = min(1.0, max(0.0, self.norm_share))
        if self._share is None:
            sampled.rows = row_ratios(norms, self.norm_share)
        for layer, name in enumerate(names):
            grows = tokens[layer] > pace.tolerance * over_batches[index[name]]
            ratio = sampled.tokens[layer] * (1 / pace.token_factor if grows else pace.token_factor)
            sampled.tokens[layer] = min(1.0, ratio) if self._share is None else 1.0

    def _exact(self, parameters: Sequence[Tensor]) -> tuple[list[Gradients], list[dict[int, Tensor]]]:
        """Exact gradients of the batches, and the norms of their rows."""
        rows, tokens = self.sampled.rows, self.sampled.tokens
        self.sampled.rows, self.sampled.tokens = [1.0] * len(rows), [1.0] * len(tokens)
        found = [self._gradients(number, parameters) for number in range(BATCHES)]
        self.sampled.rows, self.sampled.tokens = rows, tokens
        return [gradients for gradients, _ in found], [measured.norms for _, measured in found]

    def _added(self, parameters: Sequence[Tensor], exact: list[Gradients]) -> tuple[float, list[float]]:
        """Mean squared distance of gradients with sampled rows from exact ones; variance by tokens of each layer."""
        self.sampled.samples_tokens = False
        distance, variances = 0.0, [0.0] * len(self.sampled.linears)
        for number in range(BATCHES):
            for _ in range(BATCHES):
                gradients, measured = self._gradients(number, parameters)
                distance += sum(float((a - b).square().sum()) for a, b in zip(gradients, exact[number], strict=True))
                for layer, variance in measured.variances.items():
                    variances[layer] += variance / BATCHES**2
        return distance / BATCHES**2, variances

    def _gradients(self, number: int, parameters: Sequence[Tensor]) -> tuple[Gradients, Measured]:
        """Gradients of a batch, with the same dropout at each call."""
        torch.manual_seed(number)
        self.sampled.measured = Measured()
        loss = self._model(**self._batches[number]).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return gradients, self.sampled.measured


def row_ratios(norms: Sequence[dict[int, Tensor]], share: float) -> list[float]:
    """Ratio of rows of each block that have ``share`` of the gradient norm; none is below that of a lower block."""
    needed = {}
    for block in norms[0]:
        ratios = []
        for of_batch in norms:
            ordered = of_batch[block].sort(descending=True).values
            kept = int((ordered.cumsum(0) < share * ordered.sum() - 1e-12).sum()) + 1
            ratios.append(min(1.0, kept / len(ordered)))
        needed[block] = sum(ratios) / len(ratios)
    return [max(needed[lower] for lower in needed if lower <= block) for block in sorted(needed)]


def _variance(gradients: Sequence[Tensor]) -> float:
    mean = sum(gradients) / len(gradients)
    return sum(float((g - mean).square().sum()) for g in gradients) / (len(gradients) - 1)
