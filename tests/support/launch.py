"""Start processes.py in some processes, and read what each of them has in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.processes import SAVED


HERE = Path(__file__).parent
ALONE = "alone"
"""Instead of a wrapper: one process without torchrun."""


def launch(
    folder: Path, wrapper: str, processes: int, cases: Sequence[str], *options: str, script: str = "processes.py"
) -> Path:
    """Run ``cases`` of ``script`` in ``folder``; ``options`` are torchrun's."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # With the agent's own store gloo may read addresses of processes that died, and a restart then fails or hangs.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *options]
    command = [sys.executable, *([] if wrapper == ALONE else torchrun), str(HERE / script)]
    done = subprocess.run(
        [*command, str(folder), wrapper, *cases], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def core_first(core: Sequence[str], cases: Sequence[str]) -> list[Any]:
    """Parameters of a test: ``core`` runs always, and the rest of ``cases`` with the slow tests."""
    assert set(core) <= set(cases)
    return [case if case in core else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def wanted(request: pytest.FixtureRequest, core: Sequence[str], cases: Sequence[str]) -> list[str]:
    """The ``cases`` that the selected tests need: all of them if a slow test of the file is selected."""
    items = [item for item in request.session.items if item.path == request.path]
    slow = any(item.get_closest_marker("slow") for item in items)
    return [case for case in cases if slow or case in core]


def result(folder: Path, case: str, rank: int = 0) -> dict[str, Any]:
    """What ``case`` came to in one process."""
    found: dict[str, Any] = torch.load(folder / f"{case}-{rank}.pt")
    return found


def again(folder: Path, case: str) -> str:
    """Resume ``case`` from the checkpoint that it has left in ``folder``."""
    return f"{case}-again@{folder / case / f'checkpoint-{SAVED}'}"


def assert_trained_alike(alone: Path, folder: Path, case: str, wrapper: str) -> None:
    """Processes with ``wrapper`` end with the weights of one process, up to rounding."""
    one, many = result(alone, case), result(folder, case)
    assert many["wrapper"] == [wrapper]
    assert largest(one, many) < 2e-6
    assert mean(one, many) < 2e-8


def largest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference between the weights of two results."""
    for outcome in (one, other):
        assert "error" not in outcome, outcome["error"]
    pairs = [(value, other["weights"][name]) for name, value in one["weights"].items()]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def mean(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean difference between the weights of two results."""
    differences = [(v.double() - other["weights"][name].double()).abs() for name, v in one["weights"].items()]
    return float(torch.cat([difference.flatten() for difference in differences]).mean())
