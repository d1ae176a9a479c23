"""Standard and multirate training with DDP in several processes on this machine, over a link of any speed.

    python -m benchmarks speed ddp --processes 2 --cycles 10
    python -m benchmarks speed ddp --processes 2 --cycles 10 --mbit 1000

Cycles of each kind are measured in turn within the same processes: standard and multirate training, each with and
without communication. The difference of a cycle with and without communication is the time that it waits:
computation and communication overlap. With ``--mbit`` all processes are in a separate network namespace, whose
loopback lets through that many megabits per second, both directions together (Linux; needs ``unshare`` and ``tc``, no
root).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import BertConfig, BertForSequenceClassification, set_seed

from benchmarks import configs
from benchmarks.commands import parser_of
from benchmarks.speed.harness import Measurement, Timer, add_record, interleave, ratios, report
from benchmarks.tables import table, with_quartiles
from hf_multirate import Multirate


LIMITED = "ip link set lo up && tc qdisc add dev lo root tbf rate {mbit}mbit burst 512kb latency 1s && exec "
KINDS = ("baseline", "baseline, no communication", "multirate", "multirate, no communication")


def model_of(layers: int, width: int) -> nn.Module:
    """A classifier of the shape of BERT with weights that are the same in all processes."""
    set_seed(0)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        vocab_size=8192,
    )
    return BertForSequenceClassification(config)


class Run:
    """One kind of training, a cycle at a time."""

    def __init__(self, kind: str, options: argparse.Namespace) -> None:
        model = model_of(options.layers, options.width)
        optimizer = AdamW(model.parameters(), lr=1e-4)
        communicates = "no communication" not in kind
        self._wrapped = DistributedDataParallel(model) if communicates else model
        multirate = "multirate" in kind
        self._multirate = Multirate(configs.two_rate(options.fast, options.period) if multirate else configs.off())
        self._multirate.attach(self._wrapped, optimizer)
        self._optimizer = optimizer
        self._step, self._period = 0, options.period
        self._batch = torch.randint(0, 8192, (options.rows, options.tokens))

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of each rate group."""
        parameters = dict(self._wrapped.named_parameters())
        return {name: sum(parameters[key].numel() for key in keys) for name, keys in self._multirate.partition.items()}

    def cycle(self) -> None:
        """Train for a cycle of steps, until all processes are done."""
        for _ in range(self._period):
            self._multirate.set_step(self._step)
            labels = torch.zeros(len(self._batch), dtype=torch.long)
            with self._multirate.micro_batch(last=True):
                self._wrapped(input_ids=self._batch, labels=labels).loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._step += 1
        dist.barrier()


def measure(options: argparse.Namespace) -> Measurement:
    """All kinds in turn, in each process."""
    runs = {kind: Run(kind, options) for kind in KINDS}
    timer = Timer()

    def block(kind: str, _: int) -> None:
        dist.barrier()
        with timer(kind):
            runs[kind].cycle()

    interleave({kind: partial(block, kind) for kind in KINDS}, options.cycles, timer)
    seconds = {kind: timer.seconds[kind] for kind in KINDS}
    quotients = {
        "speed-up": ratios(seconds["baseline"], seconds["multirate"]),
        "speed-up of computation": ratios(seconds[KINDS[1]], seconds[KINDS[3]]),
    }
    return Measurement(seconds, quotients, {"parameters": runs["multirate, no communication"].sizes})


def worker(options: argparse.Namespace) -> Measurement:
    """The work of each process; the first one reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    measured = measure(options)
    if dist.get_rank() == 0:
        report(measured, options)
    dist.destroy_process_group()
    return measured


def table_of(records: Iterable[Mapping[str, Any]]) -> str:
    """A row for each recorded measurement: cycles, waiting, and speed-ups with quartiles."""
    rows = []
    for record in records:
        asked, seconds = record["options"], record["seconds"]
        base, base_alone, ours, ours_alone = (seconds[kind] for kind in KINDS)
        waits = [
            (median(all_), median(all_) - median(alone)) for all_, alone in ((base, base_alone), (ours, ours_alone))
        ]
        speedups = [with_quartiles(ratios(base, ours)), with_quartiles(ratios(base_alone, ours_alone))]
        rows.append([_link(asked), *(f"{cycle:.2f}, {wait:.2f}" for cycle, wait in waits), *speedups])
    header = ["link", "baseline: cycle, waiting, s", "multirate: cycle, waiting, s", "speed-up", "of computation only"]
    return table(header, rows)


def _link(asked: Mapping[str, Any]) -> str:
    words = [f"{asked['mbit']:,} Mbit/s" if asked["mbit"] else "loopback"]
    words += ["head fast"] if asked["fast"] == "head" else []
    words += ["four processes"] if asked["processes"] == 4 else []
    return ", ".join(words)


def main(argv: list[str] | None = None) -> Measurement | None:
    """Start the processes, or be one of them."""
    argv = sys.argv[1:] if argv is None else argv
    parser = parser_of("python -m benchmarks speed ddp", __doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--mbit", type=int, default=0, help="speed of the link; 0 is that of the loopback")
    parser.add_argument("--period", type=int, default=5)
    parser.add_argument("--fast", default="depth:0.33")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    add_record(parser)
    options = parser.parse_args(argv)
    if options.cycles < 2:
        parser.error(f"--cycles {options.cycles}: give two or more, for quartiles")
    if "RANK" in os.environ:
        return worker(options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--master_addr=127.0.0.1", "--master_port=29577"]
    command = [*launch, f"--nproc_per_node={options.processes}", "-m", "benchmarks", "speed", "ddp", *argv]
    if options.mbit:
        command = ["unshare", "-rn", "sh", "-c", LIMITED.format(mbit=options.mbit) + '"$@"', "sh", *command]
    subprocess.run(command, check=True, env=environment)
    return None
