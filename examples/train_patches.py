"""Copies on different time scales: images with patches that give the label away, from scratch.

With a small step size a network learns the patches and little else; with a large one it learns the images and not
the patches. Two copies, one with each step size, that are averaged whenever their times meet learn both (Vlaar &
Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022). All three methods see the same number of minibatches.

    python examples/train_patches.py --jobs 2                    # handwritten digits that are installed
    python examples/train_patches.py --data_dir FOLDER           # cifar10_{train,test}*.parquet
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from comparison import Run, Table, compare
from hf_multirate import AveragedCopies, CopiesConfig
from patches import Patches, embedded_digits, read_images, wide_resnet


TABLE = Table(
    "Images with patches, WideResNet, accuracy in %",
    {
        "h = 0.004": {"clean": "69.3", "augmented": "92.9", "patch only": "98.9"},
        "h = 0.1": {"clean": "71.7", "augmented": "63.9", "patch only": "26.7"},
        "multirate": {"clean": "76.5", "augmented": "92.7", "patch only": "97.3"},
    },
    plotted="clean",
    digits=1,
)


@dataclass(frozen=True)
class Settings:
    """Step sizes, period, momentum, weight decay, batch size and epochs are the paper's."""

    data_dir: str = ""
    images: int = 4_000
    """Images to train on."""
    scored: int = 1_000
    """Images to score on."""
    epochs: int = 50
    depth: int = 16
    widen: int = 1
    batch_size: int = 128
    learning_rate: float = 0.004
    period: int = 25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    pattern: float = 0.1
    """Largest entry of the pattern of a class."""
    lower_after: float = 1.0
    """Share of the epochs of ``h = 0.1`` after which its step size is the small one."""
    validate: bool = False
    """Score on images of the training files that are left out of training, instead of the test images."""
    momenta: str = "average"
    buffers: str = "average"


def read(settings: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on and to score on."""
    if settings.data_dir:
        folder = Path(settings.data_dir)
        first, last = settings.images, settings.images + settings.scored
        images, labels = read_images(folder, "cifar10_train*.parquet", last if settings.validate else first)
        if settings.validate:
            return images[:first], labels[:first], images[first:], labels[first:]
        return images, labels, *read_images(folder, "cifar10_test*.parquet", settings.scored)
    images, labels = embedded_digits()
    first, last = settings.scored, settings.scored + settings.images
    return images[first:last], labels[first:last], images[:first], labels[:first]


def train(method: str, seed: int, settings: Settings) -> Run:
    """One run; the figures of the table are accuracies after the last epoch."""
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = read(settings)
    patches = Patches(settings.pattern)
    model = wide_resnet(settings.depth, settings.widen)
    rate = settings.learning_rate * (settings.period if method == "h = 0.1" else 1)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    copies = None
    if method == "multirate":
        config = CopiesConfig((1, settings.period), momenta=settings.momenta, buffers=settings.buffers)
        copies = AveragedCopies(config).attach(model, optimizer)
    curve = []
    step = 0
    for epoch in range(1, settings.epochs + 1):
        if method == "h = 0.1" and epoch - 1 >= settings.lower_after * settings.epochs:
            optimizer.param_groups[0]["lr"] = settings.learning_rate
        for rows in torch.randperm(len(images)).split(settings.batch_size):
            if copies is not None:
                copies.begin_step(step)
            batch = patches.training_batch(images[rows], labels[rows], rows)
            nn.functional.cross_entropy(model(batch), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        scores = score(model, patches, test_images, test_labels)
        curve.append((float(epoch), scores["clean"]))
    if copies is not None:
        copies.detach()
    return Run(method, seed, scores, curve)


@torch.no_grad()
def score(model: nn.Module, patches: Patches, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in percent on images as they are, with patches, and on nothing but patches."""
    kinds = {
        "clean": images,
        "augmented": patches.add(images, labels, torch.ones(len(images))),
        "patch only": patches.only(images, labels),
    }
    model.eval()
    right = {name: [(model(part).argmax(1)) for part in kind.split(250)] for name, kind in kinds.items()}
    model.train()
    return {name: 100 * (torch.cat(parts) == labels).float().mean().item() for name, parts in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Settings()).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--validate", action="store_true", help="score on a part of the training images")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/patches"))
    parser.add_argument("--quick", action="store_true", help="two short runs of each method on 500 images")
    args = vars(parser.parse_args())
    seeds, jobs, folder, quick = (args.pop(name) for name in ("seeds", "jobs", "output_dir", "quick"))
    settings = Settings(**args)
    if quick:
        settings, seeds = replace(settings, images=480, scored=200, epochs=2, depth=10, batch_size=32, period=4), 2
    compare(train, TABLE, settings, range(seeds), jobs, folder)


if __name__ == "__main__":
    main()
