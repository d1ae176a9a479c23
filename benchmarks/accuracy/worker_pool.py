"""Worker processes, each pinned to one core, so that runs side by side do not share one.

They end with the process that has started them, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import transformers


SECONDS_BETWEEN_LOOKS = 1.0

Key = TypeVar("Key", bound=Hashable)


def _end_with(parent: int) -> None:
    """End this process once it has another parent than ``parent``, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _begin(cores: Any, parent: int) -> None:
    """Take one core and one thread: run in each worker before its first task."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):  # only on Linux
        os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextmanager
def workers(jobs: int) -> Iterator[Any]:
    """A pool of ``jobs`` pinned processes; None for 0, to run here on one thread."""
    if jobs == 0:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield None
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(jobs))
    for i in range(jobs):
        cores.put(available[i % len(available)])
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(cores, os.getpid())) as pool:
        try:
            yield pool
        finally:  # after an error the results of waiting runs would be lost
            pool.shutdown(cancel_futures=True)


def results_of(calls: Mapping[Key, tuple[Any, ...]], pool: Any) -> Iterator[tuple[Key, Any]]:
    """Make ``calls``, and yield their results as they come, each with its key.

    Args:
        calls: A function and its arguments for each key. They begin in this order.
        pool: A pool of `workers`; None runs the calls here, one after the other.
    """
    if pool is None:
        for key, (function, *arguments) in calls.items():
            yield key, function(*arguments)
        return
    futures = {pool.submit(*call): key for key, call in calls.items()}
    for future in as_completed(futures):
        yield futures[future], future.result()
