"""What a step of a trainer costs in floating point operations, which no other job on the machine can disturb."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


class Counted:
    """A mixin that counts the operations of forward and backward of each call of ``training_step``."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with FlopCounterMode(display=False) as counter:
            loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.__dict__.setdefault("flops", []).append(counter.get_total_flops())
        return loss


def saving(trainer: Any, period: int) -> float:
    """Cost of a fast-only step as a share of a full one's, which all steps of a kind have in common."""
    flops = trainer.flops
    assert flops == [flops[1 if step % period else 0] for step in range(len(flops))]
    return flops[1] / flops[0]
