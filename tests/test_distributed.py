"""Two processes draw the same subsets and end with the same weights as one; what they cannot do yet is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from runs import assert_same


SCRIPT = Path(__file__).parent / "two_processes.py"
KINDS = ("element", "neuron", "step", "copies")
pytestmark = pytest.mark.distributed


def run(folder: Path, processes: int, *kinds: str) -> None:
    folder.mkdir()
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *launch, str(SCRIPT), str(folder), *kinds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    run(folder / "one", 1, *KINDS)
    run(folder / "two", 2, *KINDS, "drift")
    return folder / "one", folder / "two"


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(results: tuple[Path, Path], kind: str) -> None:
    one, two = results
    alone = torch.load(one / f"{kind}-0.pt")
    first, second = (torch.load(two / f"{kind}-{rank}.pt") for rank in (0, 1))
    assert_same(first, second)
    assert max(float((alone[name] - first[name]).abs().max()) for name in alone) < 1e-5


def test_kinds_differ(results: tuple[Path, Path]) -> None:
    ends = [torch.load(results[0] / f"{kind}-0.pt") for kind in KINDS]
    for i, one in enumerate(ends):
        for other in ends[:i]:
            assert max(float((one[name] - other[name]).abs().max()) for name in one) > 1e-3


def test_drift_in_two_processes_is_refused(results: tuple[Path, Path]) -> None:
    text = (results[1] / "drift-0.txt").read_text()
    assert "got 2 processes" in text
