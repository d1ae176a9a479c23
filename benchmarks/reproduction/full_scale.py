"""The experiments at the size of the paper, for a GPU and a network: ResNet-50 on CIFAR-100, DistilBERT on SST-2.

Networks and rows are from the Hugging Face hub. What the paper does not say is chosen here: 224 pixels a side, batch
sizes, weight decay, 5,000 images for validation, and the schedule.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    default_data_collator,
    set_seed,
)

from benchmarks.accuracy import tasks as accuracy_tasks
from benchmarks.accuracy.tasks import SPLIT_SEED, Data, InputError, Task


IMAGES, RESNET = "uoft-cs/cifar100", "microsoft/resnet-50"
SENTENCES, DISTILBERT = "SetFit/sst2", "distilbert/distilbert-base-uncased"
LABELS = 100
VALIDATION_ROWS = 5000
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that the network was trained on, by channel."""

_SGD: dict[str, Any] = {"optim": "sgd", "optim_args": "momentum=0.9"}
_LANGUAGE: dict[str, Any] = {"train_rows": 6920, "epochs": (("3", 3), ("6", 6), ("12", 12))}

TASKS = {
    task.name: task
    for task in (
        Task(
            "full_vision", (0.005, 0.01, 0.02), size=224, train_rows=50_000 - VALIDATION_ROWS, batch_size=64,
            epochs=(("50", 50),), weight_decay=5e-4, **_SGD,
        ),
        Task("full_language_adamw", (1e-5, 2e-5, 4e-5), **_LANGUAGE),
        Task("full_language_sgd", (1e-3, 2e-3, 4e-3), **_LANGUAGE, **_SGD),
    )
}  # fmt: skip


def load(task: Task) -> Data:
    """Rows and network from the hub.

    Raises:
        InputError: they could not be loaded.
    """
    try:
        return _images(task) if task.name == "full_vision" else _sentences(task)
    except Exception as error:  # the libraries of the hub raise many kinds
        raise InputError(
            f"rows or network of {task.name!r} could not be loaded from the hub: {error}. --full-scale needs a "
            "network, or what an earlier download left in the cache."
        ) from error


def _images(task: Task) -> Data:
    names = {"img": "pixel_values", "fine_label": "labels"}
    raw = load_dataset(IMAGES).select_columns(list(names)).rename_columns(names)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(raw["train"]))
    parts = order[: task.train_rows], order[task.train_rows :]
    train, validation = (raw["train"].select(part) for part in parts)

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        return ResNetForImageClassification.from_pretrained(RESNET, num_labels=LABELS, ignore_mismatched_sizes=True)

    return Data(train, validation, raw["test"], partial(batch, task.size), model, by_length=False)


def batch(size: int, items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Images with ``size`` pixels a side, normalised as the network was trained."""
    pixels = torch.stack([torch.from_numpy(np.array(item["pixel_values"])) for item in items])
    large = nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2).float() / 255, (size, size), mode="bicubic", align_corners=False
    )
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    labels = torch.tensor([item["labels"] for item in items])
    return {"pixel_values": (large - mean) / deviation, "labels": labels}


def _sentences(task: Task) -> Data:
    raw = load_dataset(SENTENCES)
    tables = [raw[part].to_pandas().rename(columns={"label": "labels"}) for part in ("train", "validation", "test")]
    return accuracy_tasks.texts(tables, 2, task.size, DISTILBERT)


def random_data(task: Task, rows: int) -> Data:
    """Random rows, and networks of these shapes with random weights. Images are of 32 pixels a side."""
    draws = np.random.default_rng(0)

    def image(label: int) -> dict[str, Any]:
        return {"pixel_values": draws.integers(0, 256, (32, 32, 3), dtype=np.uint8), "labels": label}

    def sentence(label: int) -> dict[str, Any]:
        return {"input_ids": draws.integers(1, 1000, 8).tolist(), "attention_mask": [1] * 8, "labels": label}

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        if task.name == "full_vision":
            return ResNetForImageClassification(ResNetConfig(num_labels=LABELS))
        return DistilBertForSequenceClassification(DistilBertConfig(num_labels=2))

    made = [(image if task.name == "full_vision" else sentence)(i % 2) for i in range(rows)]
    collator = partial(batch, 32) if task.name == "full_vision" else default_data_collator
    return Data(made, made, made, collator, model, by_length=False)
