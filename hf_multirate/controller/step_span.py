"""Time of a step on a GPU, measured by the GPU itself: the host neither waits for it nor runs ahead of the clock."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn


class StepSpan(Protocol):
    """The time from the creation of the object to `end`."""

    def end(self) -> None:
        """End the time."""

    def seconds(self, *, wait: bool) -> float | None:
        """The seconds; None if the end is not reached yet and ``wait`` is False."""


class DeviceSpan:
    """The time between two events in the work that the host sends to a GPU.

    Work of an earlier step is not in it, although the host may have sent this step while that work was running.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun, self._ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._begun.record(torch.cuda.current_stream(device))

    def end(self) -> None:
        """See `StepSpan`."""
        self._ended.record(torch.cuda.current_stream(self._device))

    def seconds(self, *, wait: bool) -> float | None:
        """See `StepSpan`."""
        if wait:
            self._ended.synchronize()
        elif not self._ended.query():  # type: ignore[no-untyped-call]
            return None
        return float(self._begun.elapsed_time(self._ended)) / 1000.0


def gpu_of(model: nn.Module) -> torch.device | None:
    """The GPU of a model; None if its first parameter is on another kind of device."""
    device = next((parameter.device for parameter in model.parameters()), None)
    return device if device is not None and device.type == "cuda" else None
