"""Whether a tensor can be read without waiting for a device."""

from __future__ import annotations

from torch import Tensor


def is_on_host(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` are in the memory of the host."""
    return tensor.device.type == "cpu"
