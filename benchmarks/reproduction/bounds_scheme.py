"""Multirate SGD on plain tensors, for many draws of the noise and many periods at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.reproduction.bounds_problems import Problem


@dataclass(frozen=True)
class Averages:
    """Squared norms of the gradient of the loss at one period.

    Attributes:
        mean: Mean over all steps and draws.
        error: Its standard error over draws.
        floor: Mean over the second half of the steps.
        floor_error: Its standard error.
        last: Parameters after the last step, shape (draws, size).
    """

    mean: float
    error: float
    floor: float
    floor_error: float
    last: Tensor


def slow_part(size: int, groups: int) -> Tensor:
    """Mask of the slow coordinates: all but the first of ``groups`` equal groups.

    One parameter cannot be split. It is the slow group then, and the loss does not depend on the fast one.
    """
    slow = torch.ones(size, dtype=torch.bool)
    if groups > 1:
        slow[: size // groups] = False
    return slow


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        slow: Mask of the slow coordinates.
        h: Inner step size.
        periods: Periods of the slow coordinates.
        steps: Number of steps, a multiple of twice each period.
        draws: Number of independent runs.

    Raises:
        ValueError: ``steps`` is no such multiple.
    """

    slow: Tensor
    h: float
    periods: Sequence[int]
    steps: int
    draws: int

    def __post_init__(self) -> None:
        """Check that cycles are whole in each half of the steps."""
        if any(self.steps % (2 * k) for k in self.periods):
            raise ValueError(
                f"steps must be a multiple of twice each of the periods {list(self.periods)}, got {self.steps}."
            )


@torch.no_grad()
def averages(problem: Problem, start: Tensor, setting: Setting) -> list[Averages]:
    """Run the scheme from ``start``, at each period; all periods meet the same minibatches."""
    generator = torch.Generator().manual_seed(0)
    periods, steps, draws = setting.periods, setting.steps, setting.draws
    theta = start.expand(len(periods), draws, problem.size).clone()
    direction = torch.zeros_like(theta)
    k, fast = torch.tensor(periods).view(-1, 1, 1), ~setting.slow
    sums = torch.zeros(2, len(periods), draws, dtype=torch.float64)
    for step in range(steps):
        gradient = problem.gradient(theta)
        sums[2 * step // steps] += gradient.square().sum(-1)
        sampled = problem.sampled(theta, gradient, problem.minibatch(draws, generator))
        direction = torch.where(fast | (step % k == 0), sampled, direction)
        theta -= setting.h * direction
    by_draw = (sums.sum(0) / steps, sums[1] / (steps // 2))
    figures = [(values.mean(1), values.std(1) / draws**0.5) for values in by_draw]
    numbers = [[float(column[i]) for pair in figures for column in pair] for i in range(len(periods))]
    return [Averages(*row, theta[i]) for i, row in enumerate(numbers)]
