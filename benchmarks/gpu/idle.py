"""How busy the device is in a step: time in kernels, their number, and the time until the host has given out the work.

A profiler makes the host slower, but no kernel. So the time in kernels comes from the profiler, and the time of the
step from marks without it. The rest of the step is the time in which the device waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.place import Cpu


NO_KERNELS = ("Memcpy", "Memset")
"""How names of events begin that are work of the device, but no kernels."""

Interval = tuple[float, float]


def covered(intervals: Iterable[Interval]) -> float:
    """Length of the union of intervals.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(intervals):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total


def busy(place: Cpu, step: Callable[[], None], number: int) -> dict[str, float]:
    """Seconds in kernels and number of kernels, each for one of ``number`` steps.

    Raises:
        RuntimeError: the profiler saw no kernel.
    """
    on_device = place.kind == "cuda"
    activity, device = (
        (ProfilerActivity.CUDA, DeviceType.CUDA) if on_device else (ProfilerActivity.CPU, DeviceType.CPU)
    )
    place.synchronize()
    with profile(activities=[activity]) as profiler:
        for _ in range(number):
            step()
        place.synchronize()
    events = [e for e in profiler.events() if e.device_type == device and not e.is_user_annotation]
    if not events:
        raise RuntimeError("the profiler saw no kernels: it may lack the right to use CUPTI")
    kernels = sum(not event.name.startswith(NO_KERNELS) for event in events)
    microseconds = covered((event.time_range.start, event.time_range.end) for event in events)
    return {"busy": microseconds / 1e6 / number, "kernels": kernels / number}


def launch_seconds(place: Cpu, step: Callable[[], None], number: int) -> list[float]:
    """Seconds until the host has given out a step, each from an empty queue.

    A step of more kernels than the queue holds waits for the device, so this is at most that much.
    """
    found: list[float] = []
    for _ in range(number):
        place.synchronize()
        begun = time.perf_counter()
        step()
        found.append(round(time.perf_counter() - begun, 7))
    place.synchronize()
    return found
