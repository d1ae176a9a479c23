"""Peak memory of steps, each kind in a separate process."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux resets the peak of a process")
@pytest.mark.slow
def test_a_fast_step_needs_less_memory_than_a_full_one() -> None:
    small = ["--hidden=64", "--layers=4", "--batch=32", "--length=64"]
    ours = memory.in_process("multirate", small)
    assert ours["fast step"] < ours["full step"]
    assert ours["full step"] > memory.in_process("multirate, gradient checkpointing", small)["full step"]
