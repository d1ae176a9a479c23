"""`python -m benchmarks reproduce EXPERIMENT`: see `--help`."""

from __future__ import annotations

from benchmarks.commands import Command, dispatch


EXPERIMENTS = {
    "vision": Command("benchmarks.reproduction.vision", "fine-tune a ResNet-50 on images, with ablations"),
    "language": Command("benchmarks.reproduction.language", "fine-tune an encoder on SST-2, with SGD and with AdamW"),
    "bounds": Command("benchmarks.reproduction.bounds", "check the bounds on convergence numerically"),
    "scratch": Command("benchmarks.reproduction.from_scratch", "train random subsets and averaged copies"),
}


def main(argv: list[str]) -> None:
    """Run one experiment."""
    dispatch("python -m benchmarks reproduce", "Experiments of the paper.", EXPERIMENTS, argv)
