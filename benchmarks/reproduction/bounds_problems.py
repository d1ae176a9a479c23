"""Problems for which the constants of the bounds are known exactly: Huber loss, quadratic, logistic regression.

The bounds assume that the expected squared norm of a minibatch gradient is at most M, everywhere. A quadratic has no
such M, so its gradient is cut off far from the minimum.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Problem(ABC):
    """A loss with noisy gradients. All tensors are of float64; the last dimension of parameters is ``size``.

    Attributes:
        name: Name in files and tables.
        size: Number of parameters.
        smoothness: L, the Lipschitz constant of the gradient.
        minimum: Parameters of the least loss.
    """

    name: str
    size: int
    smoothness: float
    minimum: Tensor

    @abstractmethod
    def loss(self, theta: Tensor) -> Tensor:
        """Losses, shape ``theta.shape[:-1]``."""

    @abstractmethod
    def gradient(self, theta: Tensor) -> Tensor:
        """Gradients of the loss, of the shape of ``theta``."""

    @abstractmethod
    def minibatch(self, draws: int, generator: torch.Generator) -> Tensor:
        """Random numbers that stand for ``draws`` minibatches."""

    @abstractmethod
    def sampled(self, theta: Tensor, gradient: Tensor, minibatch: Tensor) -> Tensor:
        """Gradients of the losses of minibatches. ``theta`` and ``gradient`` have the shape (..., draws, size)."""

    @abstractmethod
    def moment(self, part: Tensor) -> float:
        """Largest expected squared norm of the coordinates ``part`` (a mask) of a minibatch gradient."""

    @abstractmethod
    def variance(self, part: Tensor) -> float:
        """Largest variance of these coordinates, summed."""


class Huber(Problem):
    """The Huber loss of one parameter: half its square up to ``cut``, then linear. Noise of the gradient is +-1."""

    name = "huber"
    size = 1
    smoothness = 1.0
    cut = 0.35

    def __init__(self) -> None:
        self.minimum = torch.zeros(1, dtype=torch.float64)

    def loss(self, theta: Tensor) -> Tensor:
        """Half the square, then linear."""
        return nn.functional.huber_loss(theta, torch.zeros_like(theta), reduction="none", delta=self.cut).sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """The parameter, cut off."""
        return theta.clamp(-self.cut, self.cut)

    def minibatch(self, draws: int, generator: torch.Generator) -> Tensor:
        """Signs."""
        return _signs((draws, 1), generator)

    def sampled(self, theta: Tensor, gradient: Tensor, minibatch: Tensor) -> Tensor:
        """Noise is added."""
        return gradient + minibatch

    def moment(self, part: Tensor) -> float:
        """Far from the minimum."""
        return float(part.sum()) * (self.cut**2 + 1)

    def variance(self, part: Tensor) -> float:
        """The same everywhere."""
        return float(part.sum())


class Quadratic(Problem):
    """Eight parameters that interact; noise of +-1 on each derivative.

    In rotated coordinates y the loss is a sum of curvatures times y^2 / 2, and goes on linearly where abs(y) > 1.
    """

    name = "quadratic"
    size = 8
    smoothness = 1.0

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._axes = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
        self._curvatures = torch.linspace(0.5, 1.0, 8, dtype=torch.float64)
        self.minimum = torch.zeros(8, dtype=torch.float64)

    def loss(self, theta: Tensor) -> Tensor:
        """A sum of Huber losses in rotated coordinates."""
        y = theta @ self._axes
        return (self._curvatures * nn.functional.huber_loss(y, torch.zeros_like(y), reduction="none")).sum(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """Linear in the parameters near the minimum."""
        return (self._curvatures * (theta @ self._axes).clamp(-1, 1)) @ self._axes.T

    def minibatch(self, draws: int, generator: torch.Generator) -> Tensor:
        """Signs."""
        return _signs((draws, 8), generator)

    def sampled(self, theta: Tensor, gradient: Tensor, minibatch: Tensor) -> Tensor:
        """Noise is added."""
        return gradient + minibatch

    def moment(self, part: Tensor) -> float:
        """A convex function of the cut coordinates is largest in a corner of their cube."""
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)), dtype=torch.float64)
        gradients = (self._curvatures * corners) @ self._axes.T
        return float(gradients[:, part].square().sum(-1).max()) + self.variance(part)

    def variance(self, part: Tensor) -> float:
        """The same everywhere."""
        return float(part.sum())


class Logistic(Problem):
    """Logistic regression on 64 rows of six features, which correlate; a minibatch is one row."""

    name = "logistic"
    size = 6

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        common, own = (torch.randn(64, n, generator=generator, dtype=torch.float64) for n in (1, 6))
        self._rows = 0.7 * common + 0.7 * own
        chance = torch.rand(64, generator=generator, dtype=torch.float64)
        self._labels = (chance < (self._rows @ torch.linspace(-1, 1, 6, dtype=torch.float64)).sigmoid()).double()
        self.smoothness = float(torch.linalg.eigvalsh(self._rows.T @ self._rows)[-1]) / 64 / 4
        self.minimum = self._solved()

    def _solved(self) -> Tensor:
        """Newton's method."""
        theta = torch.zeros(6, dtype=torch.float64)
        for _ in range(30):
            slopes = (self._rows @ theta).sigmoid()
            curvature = self._rows.T @ ((slopes * (1 - slopes))[:, None] * self._rows) / 64
            theta = theta - torch.linalg.solve(curvature, self.gradient(theta))
        return theta

    def loss(self, theta: Tensor) -> Tensor:
        """Mean over the rows."""
        scores = theta @ self._rows.T
        return (nn.functional.softplus(scores) - self._labels * scores).mean(-1)

    def gradient(self, theta: Tensor) -> Tensor:
        """Mean over the rows."""
        return ((theta @ self._rows.T).sigmoid() - self._labels) @ self._rows / 64

    def minibatch(self, draws: int, generator: torch.Generator) -> Tensor:
        """Numbers of rows."""
        return torch.randint(64, (draws,), generator=generator)

    def sampled(self, theta: Tensor, gradient: Tensor, minibatch: Tensor) -> Tensor:
        """Gradients of the drawn rows."""
        rows = self._rows[minibatch]
        error = (theta * rows).sum(-1).sigmoid() - self._labels[minibatch]
        return error[..., None] * rows

    def moment(self, part: Tensor) -> float:
        """No error of a prediction is above 1."""
        return float(self._rows[:, part].square().sum(-1).mean())

    def variance(self, part: Tensor) -> float:
        """At most the second moment."""
        return self.moment(part)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).double() * 2 - 1


PROBLEMS = {kind.name: kind for kind in (Huber, Quadratic, Logistic)}
