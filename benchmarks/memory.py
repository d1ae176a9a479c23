"""Peak memory of a training step: baseline, gradient checkpointing, LoRA, and multirate training.

    python -m benchmarks memory
    python -m benchmarks memory --batch 64 --length 128

Each kind runs in a separate process. The memory before the model was made is subtracted. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainingArguments

from benchmarks import configs
from benchmarks.commands import parser_of
from benchmarks.machine import ROOT
from benchmarks.network import add_sizes, encoder
from benchmarks.tables import table
from hf_multirate import MultirateTrainer


PERIOD = 4
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "baseline, gradient checkpointing": {"checkpointing": True},
    "LoRA": {"lora": True},
    "multirate": {"multirate": True},
    "multirate, gradient checkpointing": {"multirate": True, "checkpointing": True},
}


def memory(key: str) -> int:
    """Bytes of this process: ``VmHWM``, the peak since `forget_peak`, or ``VmRSS``, the present ones."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def forget_peak() -> None:
    """Reset the peak that the kernel keeps of this process."""
    Path("/proc/self/clear_refs").write_text("5")


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random tokens."""

    def __init__(self, count: int, length: int) -> None:
        self.tokens = torch.randint(5, 30_000, (count, length))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[index], "labels": index % 2}


class Peaks(TrainerCallback):
    """Peak of each step, for full and for fast steps."""

    def __init__(self) -> None:
        self.full: list[int] = []
        self.fast: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reset the peak."""
        forget_peak()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the peak."""
        (self.fast if state.global_step % PERIOD != 1 else self.full).append(memory("VmHWM"))


def train(kind: dict[str, Any], options: argparse.Namespace) -> dict[str, int]:
    """Bytes of weights, gradients, states and activations at the peak of a full and of a fast step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    before, peaks, steps = memory("VmRSS"), Peaks(), 2 * PERIOD
    model: Any = encoder(options)
    if kind.get("lora"):
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear"))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=options.batch, report_to=[],
            save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            gradient_checkpointing=bool(kind.get("checkpointing")), logging_strategy="no",
        )  # fmt: skip
        words = {"train_dataset": Rows(options.batch * steps, options.length), "callbacks": [peaks]}
        config = configs.two_rate("head", PERIOD) if kind.get("multirate") else configs.off()
        MultirateTrainer(model, args, multirate=config, **words).train()
    if not kind.get("multirate"):
        return {"every step": max(peaks.full + peaks.fast) - before}
    return {"full step": max(peaks.full) - before, "fast step": max(peaks.fast) - before}


def in_process(name: str, argv: list[str]) -> dict[str, int]:
    """`train` in a separate process, which returns large blocks of memory to the system at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", "memory", *argv, "--kind", name]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> dict[str, dict[str, int]]:
    """Print megabytes of each kind."""
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of("python -m benchmarks memory", __doc__)
    add_sizes(parser, batch=32, length=64)
    parser.add_argument("--kind", choices=KINDS, help="only this one, in this process")
    options = parser.parse_args(argv)
    if options.kind:
        found = train(KINDS[options.kind], options)
        print(json.dumps(found))
        return {options.kind: found}
    results = {name: in_process(name, argv) for name in KINDS}
    rows = []
    for name, peaks in results.items():
        cells = [f"{value / 1e6:.0f}" for value in peaks.values()]
        rows.append([name, cells[0], cells[1] if len(cells) > 1 else ""])
    print(table(["training", "MB at the peak of a full step", "of a fast step"], rows))
    return results
