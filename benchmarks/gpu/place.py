"""The device of the measurements: its clock, its memory and its precisions.

Work on a GPU is asynchronous. A mark is an event in its queue, so a step is timed without waiting for it. A CPU has
the same interface, to try the measurements out on it.
"""

from __future__ import annotations

import gc
import platform
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

from benchmarks.memory import forget_peak, memory


class SkippedError(Exception):
    """A measurement that this machine cannot make; the message is the reason."""


class Cpu:
    """A CPU: marks are seconds, memory is that of the process (Linux only)."""

    kind = "cpu"
    bf16 = True

    def __init__(self) -> None:
        self.device = torch.device(self.kind)

    def describe(self) -> dict[str, Any]:
        """Name and properties of the device."""
        return {"device": platform.processor() or platform.machine()}

    def synchronize(self) -> None:
        """Wait until all work is done."""

    def mark(self) -> Any:
        """A point in the order of the work."""
        return time.perf_counter()

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, after `synchronize`."""
        return float(end - begin)

    def forget_peak(self) -> None:
        """Begin a new peak of memory."""
        try:
            forget_peak()
        except OSError as error:
            raise SkippedError("the kernel does not reset the peak of a process") from error

    def peak(self) -> int:
        """Bytes at the peak since `forget_peak`."""
        return memory("VmHWM")

    def allocated(self) -> int:
        """Bytes that are allocated now."""
        return memory("VmRSS")

    def free(self) -> None:
        """Return memory that nothing refers to."""
        gc.collect()

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """A context for the forward pass in ``precision``: ``bf16``, or another one for none."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=precision == "bf16")


class Cuda(Cpu):
    """The first visible GPU."""

    kind = "cuda"

    def __init__(self) -> None:
        super().__init__()
        self.bf16 = torch.cuda.get_device_capability() >= (8, 0)

    def describe(self) -> dict[str, Any]:
        """Name and properties of the device."""
        found = torch.cuda.get_device_properties(0)
        capability = f"{found.major}.{found.minor}"
        sizes = {"memory_bytes": found.total_memory, "processors": found.multi_processor_count}
        return {"device": found.name, "capability": capability, "cuda": torch.version.cuda, **sizes}

    def synchronize(self) -> None:
        """Wait until all work is done."""
        torch.cuda.synchronize()

    def mark(self) -> Any:
        """A point in the order of the work."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Seconds between two marks, after `synchronize`."""
        return float(begin.elapsed_time(end)) / 1000.0

    def forget_peak(self) -> None:
        """Begin a new peak of memory."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Bytes at the peak since `forget_peak`."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def allocated(self) -> int:
        """Bytes that are allocated now."""
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def free(self) -> None:
        """Return memory that nothing refers to."""
        gc.collect()
        torch.cuda.empty_cache()


def require_device(kind: str) -> None:
    """Check that there is a GPU if ``kind`` is ``cuda``, without starting CUDA.

    Raises:
        ValueError: there is none.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"torch {torch.__version__} sees no CUDA device. Run on a machine with one; --device cpu --tiny --out "
            "FILE tries the command out without a GPU."
        )


def place_of(kind: str) -> Cpu:
    """The device ``cuda`` or ``cpu``.

    Raises:
        ValueError: there is no GPU.
    """
    require_device(kind)
    return Cuda() if kind == "cuda" else Cpu()


def require_cuda(place: Cpu) -> None:
    """Skip the measurement without a GPU."""
    if place.kind != "cuda":
        raise SkippedError("needs CUDA")


def require_precision(place: Cpu, precision: str) -> None:
    """Skip the measurement if the device has no ``precision``."""
    if precision == "bf16" and not place.bf16:
        raise SkippedError("the device has no bf16")
