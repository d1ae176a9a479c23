"""Time plain DDP and multirate DDP in two or more processes on this machine, over a link of any speed.

    python benchmarks/processes.py --processes 2 --cycles 10
    python benchmarks/processes.py --processes 2 --cycles 10 --mbit 1000

Every cycle of each kind is timed in turn within the same processes: plain and multirate training, each with and
without communication, in an order that rotates. What a cycle takes longer with communication is what it waits for:
computation and communication overlap. With ``--mbit`` all processes are in a network namespace of their own, whose
loopback lets through that many megabits per second, both directions together (Linux; needs ``unshare`` and ``tc``, no
root).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_multirate import Multirate, MultirateConfig


LIMITED = "ip link set lo up && tc qdisc add dev lo root tbf rate {mbit}mbit burst 512kb latency 1s && exec "
KINDS = ("plain", "plain, no communication", "multirate", "multirate, no communication")


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
    """One kind of training that goes on for a cycle at a time."""

    def __init__(self, kind: str, arguments: argparse.Namespace) -> None:
        model = model_of(arguments.layers, arguments.width)
        optimizer = AdamW(model.parameters(), lr=1e-4)
        communicates = "no communication" not in kind
        self._wrapped = DistributedDataParallel(model) if communicates else model
        config = MultirateConfig.two_rate(arguments.fast, arguments.period, turns="fixed")
        self._multirate = Multirate(config if "multirate" in kind else MultirateConfig.off())
        self._multirate.attach(self._wrapped, optimizer)
        self._optimizer = optimizer
        self._step, self._period = 0, arguments.period
        self._batch = torch.randint(0, 8192, (arguments.rows, arguments.tokens))

    @property
    def sizes(self) -> dict[str, int]:
        """Parameters of each rate group."""
        parameters = dict(self._wrapped.named_parameters())
        return {name: sum(parameters[key].numel() for key in keys) for name, keys in self._multirate.partition.items()}

    def cycle(self) -> float:
        """Train for a cycle of steps. Seconds that this process took."""
        dist.barrier()
        start = time.perf_counter()
        for _ in range(self._period):
            self._multirate.select(self._step)
            labels = torch.zeros(len(self._batch), dtype=torch.long)
            with self._multirate.micro_batch(last=True):
                self._wrapped(input_ids=self._batch, labels=labels).loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self._step += 1
        dist.barrier()
        return time.perf_counter() - start


def worker(arguments: argparse.Namespace) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runs = [Run(kind, arguments) for kind in KINDS]
    seconds: list[list[float]] = [[] for _ in KINDS]
    for number in range(arguments.cycles + 1):
        for turn in range(len(KINDS)):
            index = (turn + number) % len(KINDS)
            took = runs[index].cycle()
            if number:  # the first cycle is for warming up
                seconds[index].append(took)
    if dist.get_rank() == 0:
        report(arguments, seconds)
    dist.destroy_process_group()


def report(arguments: argparse.Namespace, seconds: list[list[float]]) -> None:
    """Print medians of cycles, ratios of pairs, and leave all of it in a file if asked to."""
    plain, plain_alone, ours, ours_alone = seconds
    ratios = {
        "whole": [a / b for a, b in zip(plain, ours, strict=True)],
        "computation": [a / b for a, b in zip(plain_alone, ours_alone, strict=True)],
    }
    waits = {"plain": median(plain) - median(plain_alone), "multirate": median(ours) - median(ours_alone)}
    for kind, values in zip(KINDS, seconds, strict=True):
        print(f"{kind:<30} {median(values):8.3f} s per cycle of {arguments.period} steps")
    for name, values in ratios.items():
        low, _, high = quantiles(values, n=4)
        print(f"plain / multirate, {name:<13} {median(values):6.2f} (quartiles {low:.2f} to {high:.2f})")
    print(f"waiting for communication: plain {waits['plain']:.3f} s, multirate {waits['multirate']:.3f} s per cycle")
    if arguments.record:
        sizes = Run("multirate, no communication", arguments).sizes
        record = {"arguments": vars(arguments), "parameters": sizes, "seconds": dict(zip(KINDS, seconds, strict=True))}
        Path(arguments.record).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--mbit", type=int, default=0, help="speed of the link; 0 is that of the loopback")
    parser.add_argument("--period", type=int, default=5)
    parser.add_argument("--fast", default="depth:0.33")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--record", default="", help="file for all times")
    arguments = parser.parse_args()
    if arguments.cycles < 2:
        parser.error(f"--cycles {arguments.cycles}: give two or more, for a spread")
    if "RANK" in os.environ:
        worker(arguments)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--master_addr=127.0.0.1", "--master_port=29577"]
    command = [*launch, f"--nproc_per_node={arguments.processes}", *sys.argv]
    if arguments.mbit:
        command = ["unshare", "-rn", "sh", "-c", LIMITED.format(mbit=arguments.mbit) + '"$@"', "sh", *command]
    subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
