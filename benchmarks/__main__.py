"""`python -m benchmarks COMMAND`: see `--help`."""

from __future__ import annotations

import sys

from benchmarks.commands import Command, dispatch


COMMANDS = {
    "accuracy": Command("benchmarks.budgets.suite", "compare contenders at equal time, each planned for its budget"),
    "equal-steps": Command("benchmarks.accuracy.suite", "compare methods at equal steps; one line of results a run"),
    "reproduce": Command("benchmarks.reproduction.command", "run the experiments of the paper: vision, ..."),
    "speed": Command("benchmarks.speed.__main__", "time steps and runs in turn: cycle, checkpointing, ddp, ..."),
    "memory": Command("benchmarks.memory", "peak memory of a training step"),
    "gpu": Command("benchmarks.gpu.command", "speed, memory and correctness on one GPU, in nine minutes"),
    "report": Command("benchmarks.report", "write tables and figures of the documentation from the results"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one command."""
    arguments = sys.argv[1:] if argv is None else argv
    dispatch("python -m benchmarks", "Benchmarks of multirate training.", COMMANDS, arguments)


if __name__ == "__main__":
    main()
