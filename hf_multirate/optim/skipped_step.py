"""Whether a fused optimizer skips its step because of an overflow, as a gradient scaler tells it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


class Overflow:
    """The flag with which a gradient scaler makes an optimizer skip a step itself, such as fused AdamW.

    Made before the step. The flag is copied to the host at once, so that `found` waits for the gradients only and not
    for the step. The device goes on meanwhile.

    Args:
        optimizer: The optimizer. A scaler has set its attribute ``found_inf``; without that, no step is skipped.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        flag: Tensor | int | None = vars(optimizer).get("found_inf")  # the sum of no flags, 0, without any gradient
        self._flag = flag
        self._copied: torch.cuda.Event | None = None
        if isinstance(flag, Tensor) and flag.is_cuda:
            self._flag = flag.to("cpu", non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(flag.device))

    def found(self) -> bool:
        """Whether the step is skipped."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._flag is not None and bool(self._flag)
