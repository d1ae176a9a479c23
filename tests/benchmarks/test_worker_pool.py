"""Workers of a suite end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.machine import ROOT


PROGRAM = """
import os, time
from benchmarks.accuracy.worker_pool import workers

if __name__ == "__main__":
    with workers(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 1000).result()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_suite_leaves_no_worker(how: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    words = {"cwd": ROOT, "env": {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, path], **words) as suite:  # type: ignore[call-overload]
        worker = Path("/proc") / suite.stdout.readline().decode().strip()
        assert worker.is_dir()
        suite.send_signal(how)
    while worker.is_dir():  # a worker that stays makes this test hang
        time.sleep(0.1)
