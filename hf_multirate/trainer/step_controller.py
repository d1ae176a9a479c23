"""Interface of the controllers that a Trainer attaches."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn


class StepController(Protocol):
    """Interface of a controller that attaches to a model and an optimizer during a training run."""

    config: Any
    applied_steps: int

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """Attach to ``model`` and ``optimizer``."""

    def detach(self) -> None:
        """Detach from both."""

    @property
    def attached(self) -> bool:
        """Whether it is attached."""

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training."""

    @property
    def phase(self) -> int:
        """Position of the present step in the cycle."""

    @property
    def begun(self) -> bool:
        """Whether a step has begun that the optimizer has not taken yet."""

    def controls(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is attached to ``optimizer``."""

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""

    def set_step(self, step: int) -> None:
        """Begin optimizer step ``step``."""

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch, with ``last`` for the last one of a step."""

    def state_dict(self) -> Any:
        """State for a checkpoint besides model and optimizer."""

    def load_state_dict(self, state: Any) -> None:
        """Load a `state_dict`."""
