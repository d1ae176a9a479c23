"""Images for the benchmark, and the network that is fine-tuned on them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ResNetForImageClassification, set_seed


Rows = list[dict[str, Any]]

FASHION = "/usr/share/datasets/fashion-mnist"
"""Where the Debian package dataset-fashion-mnist puts its files."""

LABELS = 10


class SteadyBatchNorm(nn.BatchNorm2d):
    """Batch norm that stays in eval mode: updates of the pre-trained variances make them jump."""

    def train(self, mode: bool = True) -> SteadyBatchNorm:
        del mode
        return super().train(False)


def network(folder: Path, seed: int) -> nn.Module:
    """The pre-trained one in ``folder``, with a head drawn with ``seed``."""
    set_seed(seed)
    model = ResNetForImageClassification.from_pretrained(folder, num_labels=LABELS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = SteadyBatchNorm
    return model


def cifar10(folder: Path, size: int, part: str, count: int) -> Rows:
    """The first ``count`` rows of ``train`` or ``test``, with ``size`` pixels a side."""
    table = pd.read_parquet(folder / f"cifar10_{'train_0' if part == 'train' else part}.parquet").iloc[:count]
    image, label = (next(c for c in table.columns if c.startswith(word)) for word in ("im", "la"))
    data = [value["bytes"] if isinstance(value, dict) else value for value in table[image]]
    return [_row(Image.open(io.BytesIO(d)), int(n), size) for d, n in zip(data, table[label], strict=True)]


def fashion(folder: Path, size: int, part: str, count: int) -> Rows:
    """The same of Fashion-MNIST, 28 x 28 in grey."""
    del folder
    name = "train" if part == "train" else "t10k"
    pixels = _idx(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count]
    labels = _idx(f"{name}-labels-idx1-ubyte.gz", 8)[:count]
    return [_row(Image.fromarray(image), int(label), size) for image, label in zip(pixels, labels, strict=True)]


def _idx(name: str, header: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(gzip.decompress(Path(FASHION, name).read_bytes()), np.uint8, offset=header)


def _row(image: Image.Image, label: int, size: int) -> dict[str, Any]:
    large = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return {"pixel_values": torch.from_numpy(np.array(large)), "labels": label}


def batch(items: Rows) -> dict[str, Tensor]:
    """Pixels centred as the network was trained."""
    pixels = torch.stack([item["pixel_values"] for item in items]).permute(0, 3, 1, 2).float()
    centred = pixels - 255 * torch.tensor([0.482, 0.459, 0.408]).view(3, 1, 1)
    return {"pixel_values": centred, "labels": torch.tensor([item["labels"] for item in items])}
