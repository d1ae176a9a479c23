"""Random subgroups as regularisation: a small transformer trained from scratch on a text, word by word.

A random part of the weights is zero for the fast steps of a cycle. Then it is put back, and moved by a step as long
as the cycle (Vlaar & Leimkuhler, *Multirate Training of Neural Networks*, ICML 2022). Compared with SGD, without and
with dropout.

    python examples/train_lm_subgroups.py --jobs 2                       # sentences that are installed
    python examples/train_lm_subgroups.py --text_files a.txt b.txt       # yours
    python examples/train_lm_subgroups.py --janeausten FOLDER            # six novels: see corpora.py
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers import logging as transformers_logging

from comparison import Run, Table, compare
from corpora import as_blocks, read_austen, read_embedded, read_files, words_of
from hf_multirate import MultirateConfig, MultirateTrainer, RandomSubset


TABLE = Table(
    "Small transformer, SGD",
    {
        "SGD": {"best validation loss": "4.856"},
        "SGD + dropout": {"best validation loss": "4.920"},
        "multirate": {"best validation loss": "4.840"},
    },
    plotted="validation loss",
    digits=3,
)


@dataclass(frozen=True)
class Settings:
    """The paper states 150 epochs on Penn Treebank; all the rest is our choice."""

    text: str = ""
    """Files, separated by ``:``; the folder of janeaustenr; or nothing."""
    test_text: str = ""
    """Files of a text to test on; or nothing. The network tested is that of the lowest validation loss."""
    tokenized: bool = False
    """Whether words are separated by spaces already, as in WikiText and Penn Treebank."""
    words: int = 0
    """Words of the text to use; 0 is all."""
    epochs: int = 150
    vocabulary: int = 10_000
    width: int = 128
    layers: int = 2
    length: int = 64
    batch_size: int = 32
    learning_rate: float = 0.5
    period: int = 5
    fraction: float = 0.3
    redraw: str = "cycle"
    """``step``, with period 1, draws a new subset at every step."""
    rescale: bool = True
    dropout: float = 0.1


def model_of(method: str, settings: Settings) -> GPT2LMHeadModel:
    dropout = settings.dropout if method == "SGD + dropout" else 0.0
    config = GPT2Config(
        vocab_size=settings.vocabulary, n_positions=settings.length, n_embd=settings.width, n_layer=settings.layers,
        n_head=4, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def config_of(method: str, settings: Settings, seed: int) -> MultirateConfig:
    """Subsets are drawn in the matrices of the blocks; embeddings, tied to the output, and norms stay whole."""
    if method != "multirate":
        return MultirateConfig.off()
    subset = RandomSubset(settings.fraction, rescale=settings.rescale, redraw=settings.redraw, seed=seed)
    return MultirateConfig.random_subsets(settings.period, subset, r"\.h\.\d+\.(attn|mlp)\..*weight$")


def read(text: str, settings: Settings) -> list[str]:
    """Words of files, of the novels, or of the embedded text."""
    if not text:
        lines = read_embedded()
    elif Path(text).is_dir():
        lines = read_austen(Path(text))
    else:
        lines = read_files([Path(path) for path in text.split(":")])
    words = [word for line in lines for word in line.split()] if settings.tokenized else words_of(lines)
    return words[: settings.words or None]


class BestWeights(TrainerCallback):
    """Keeps the weights of the lowest validation loss."""

    def __init__(self) -> None:
        self.loss = math.inf
        self.weights: dict[str, Tensor] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **known: Any) -> None:
        loss = known["metrics"]["eval_loss"]
        if loss < self.loss:
            self.loss = loss
            self.weights = {name: value.clone() for name, value in known["model"].state_dict().items()}


def as_dataset(rows: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": row, "labels": row} for row in rows]


def train(method: str, seed: int, settings: Settings) -> Run:
    """One run; the figures are the lowest validation loss after any epoch, and the test loss of these weights."""
    transformers_logging.set_verbosity_error()
    torch.manual_seed(seed)
    test_words = read(settings.test_text, settings) if settings.test_text else []
    text = read(settings.text, settings)
    train_rows, validation_rows, test_rows = as_blocks(text, settings.vocabulary, settings.length, test=test_words)
    model = model_of(method, settings)
    best = BestWeights()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=settings.epochs, per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size, lr_scheduler_type="constant", eval_strategy="epoch",
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, seed=seed,
            dataloader_pin_memory=False, use_cpu=True,
        )  # fmt: skip
        trainer = MultirateTrainer(
            model=model,
            args=args,
            train_dataset=as_dataset(train_rows),
            eval_dataset=as_dataset(validation_rows),
            optimizers=(torch.optim.SGD(model.parameters(), lr=settings.learning_rate), None),
            multirate=config_of(method, settings, seed),
            callbacks=[best] if test_words else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        log = [(entry["epoch"], entry["eval_loss"]) for entry in trainer.state.log_history if "eval_loss" in entry]
        final = {"best validation loss": min(loss for _, loss in log)}
        if test_words:
            trainer.remove_callback(best)
            model.load_state_dict(best.weights)
            final["test loss"] = trainer.evaluate(as_dataset(test_rows))["eval_loss"]
    return Run(method, seed, final, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Settings()).items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=value)
        elif name not in ("text", "test_text"):
            parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--text_files", nargs="+", default=[], help="text files of yours")
    parser.add_argument("--test_files", nargs="+", default=[], help="text files to test on")
    parser.add_argument("--janeausten", default="", help="the folder 'data' of the R package janeaustenr")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/lm_subgroups"))
    parser.add_argument("--quick", action="store_true", help="two short runs of each method on a piece of the text")
    args = vars(parser.parse_args())
    seeds, jobs, folder, quick = (args.pop(name) for name in ("seeds", "jobs", "output_dir", "quick"))
    files, test_files, novels = (args.pop(name) for name in ("text_files", "test_files", "janeausten"))
    missing = [name for name in (*files, *test_files, *([novels] if novels else [])) if not Path(name).exists()]
    if missing:
        parser.error(f"{missing[0]!r} does not exist: give text files, or the folder of janeaustenr")
    settings = Settings(text=novels or ":".join(files), test_text=":".join(test_files), **args)
    if quick:
        small = {"words": 20_000, "epochs": 2, "vocabulary": 500, "width": 32, "layers": 2}
        settings, seeds = replace(settings, **small), 2
    compare(train, TABLE, settings, range(seeds), jobs, folder)


if __name__ == "__main__":
    main()
