"""A model on paper of what multirate training saves on many devices, and how well it does on this machine.

    python benchmarks/scaling.py                                            # the tables of docs/distributed.md
    python benchmarks/scaling.py --check benchmarks/results/processes/*.json  # against what processes.py measured

All times are those of one device and one step. Computation: forward f, backward b = 2 f. Communication: a message of m
bytes takes 2 (N - 1) / N m / B as an all-reduce of a ring over N devices and half of that as a gather or scatter, and
2 log2(N) times the latency of a hop for each bucket of 25 MB.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Setting:
    """Devices, links and what is trained; see docs/distributed.md for where the numbers come from."""

    devices: int
    bytes_per_second: float
    parameters: float
    fast: float = 1 / 3
    """Share of the fast part in parameters and in work."""
    period: int = 5
    tokens: int = 4096
    """Per device and step."""
    flops: float = 0.4 * 312e12
    latency: float = 10e-6
    gradient_bytes: int = 4

    @property
    def forward(self) -> float:
        """Seconds of a forward pass: two operations for each parameter and token."""
        return 2 * self.parameters * self.tokens / self.flops

    def reduce(self, share: float) -> float:
        """Seconds of an all-reduce of ``share`` of the gradients."""
        size = share * self.parameters * self.gradient_bytes
        hops = math.ceil(size / 25e6) * 2 * math.log2(self.devices) * self.latency
        return 2 * (self.devices - 1) / self.devices * size / self.bytes_per_second + hops

    def ddp(self) -> tuple[float, float]:
        """Seconds of a full step and of a fast-only one. Both hide what they send behind backward."""
        full = self.forward + max(2 * self.forward, self.reduce(1))
        return full, self.forward + max(self.fast * 2 * self.forward, self.reduce(self.fast))

    def fsdp2(self) -> tuple[float, float]:
        """Seconds of a full step and of a fast-only one. Parameters travel in bfloat16."""
        gather, scatter = self.reduce(1) / 2 * 2 / self.gradient_bytes, self.reduce(1) / 2
        backward = max(2 * self.forward, gather + scatter)
        first = max(self.forward, gather)
        return first + backward, first + self.fast * backward

    def speedup(self, full: float, fast: float) -> float:
        """Of a cycle against as many full steps."""
        return self.period * full / (full + (self.period - 1) * fast)


LINKS = {
    8: {"NVLink, 200 GB/s": 200e9},
    64: {"fabric, 100 GB/s a node": 100e9, "Ethernet, 12.5 GB/s a node": 12.5e9},
    1024: {"fabric, 100 GB/s a node": 100e9, "Ethernet, 12.5 GB/s a node": 12.5e9},
}


def tables() -> str:
    """The table of docs/distributed.md."""
    lines = [
        "| model | devices | link | plain step, ms | of that waiting, ms | speed-up | if nothing were sent |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, parameters in (("110 M, DDP", 110e6), ("7 B, FSDP2", 7e9)):
        for devices, links in LINKS.items():
            for link, speed in links.items():
                setting = Setting(devices, speed, parameters)
                full, fast = setting.ddp() if "DDP" in name else setting.fsdp2()
                alone = 3 * setting.forward
                free = setting.speedup(alone, setting.forward * (1 + 2 * setting.fast))
                lines.append(
                    f"| {name} | {devices:,} | {link} | {full * 1e3:.1f} | {(full - alone) * 1e3:.1f} "
                    f"| {setting.speedup(full, fast):.2f} | {free:.2f} |"
                )
    return "\n".join(lines)


def check(paths: list[Path]) -> str:
    """Waiting for communication that the model predicts from computation and link, beside what was measured."""
    lines = [
        "| processes | link, Mbit/s | fast part | waiting a cycle, plain: predicted, measured | multirate: predicted, "
        "measured | speed-up: predicted, measured |",
        "|---|---|---|---|---|---|",
    ]
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        asked, sizes = record["arguments"], record["parameters"]
        plain, plain_alone, ours, ours_alone = (median(values) for values in record["seconds"].values())
        if not asked["mbit"]:
            continue
        # Both directions of all processes share the link: an all-reduce of a ring sends 2 (N - 1) m bytes in all.
        total, fast = sum(sizes.values()), sizes["fast"]
        sent = 2 * (asked["processes"] - 1) * 4 * total / (asked["mbit"] * 1e6 / 8)
        backward = 2 / 3 * plain_alone / asked["period"]
        full, part = max(sent - backward, 0), max(sent - backward, 0) * fast / total
        waits = (asked["period"] * full, full + (asked["period"] - 1) * part)
        predicted = (plain_alone + waits[0]) / (ours_alone + waits[1])
        lines.append(
            f"| {asked['processes']} | {asked['mbit']} | {asked['fast']} ({fast / total:.2f} of all) "
            f"| {waits[0]:.2f} s, {plain - plain_alone:.2f} s | {waits[1]:.2f} s, {ours - ours_alone:.2f} s "
            f"| {predicted:.2f}, {plain / ours:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", nargs="+", type=Path, help="files that processes.py has recorded")
    arguments = parser.parse_args()
    print(check(arguments.check) if arguments.check else tables())


if __name__ == "__main__":
    main()
