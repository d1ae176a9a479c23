"""The speed-up that ``plan`` predicts beside the one that training realises: four families, three settings each.

    python benchmarks/predict.py
    python benchmarks/predict.py --families bert --rounds 1 --hidden 32    # to see that it runs

A prediction is made from FLOPs alone, and from steps timed on this machine. Then plain and multirate training take
turns, both by `hf_multirate.MultirateTrainer`; realised is the ratio of their mean seconds of a step, over whole
cycles.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

from hf_multirate import MultirateConfig, MultirateTrainer, plan
from hf_multirate.reporting.run_record import read_record


SETTINGS = {
    "head, period 5": MultirateConfig.two_rate("head", 5, turns="fixed"),
    "last:1, period 5": MultirateConfig.two_rate("last:1", 5, turns="fixed"),
    "ladder 1,2,4": MultirateConfig.ladder([1, 2, 4], turns="fixed"),
}
ROWS, TOKENS, LABELS, LAYERS = 16, 64, 8, 6
CYCLES = 5


def _text(config: type[Any], model: type[Any], **names: Any) -> Callable[[int], nn.Module]:
    def make(hidden: int) -> nn.Module:
        sizes = {name: value(hidden) if callable(value) else value for name, value in names.items()}
        return model(config(vocab_size=4000, num_labels=LABELS, pad_token_id=0, **sizes))

    return make


SIZES = {"hidden_size": lambda h: h, "num_hidden_layers": LAYERS, "num_attention_heads": lambda h: h // 32}
FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "bert": _text(tf.BertConfig, tf.BertForSequenceClassification, **SIZES, intermediate_size=lambda h: 4 * h),
    "gpt2": _text(
        tf.GPT2Config, tf.GPT2ForSequenceClassification, n_embd=lambda h: h, n_layer=LAYERS, n_head=lambda h: h // 32
    ),
    "llama": _text(
        tf.LlamaConfig, tf.LlamaForSequenceClassification, **SIZES, num_key_value_heads=lambda h: h // 32,
        intermediate_size=lambda h: 3 * h,
    ),
    "vit": lambda h: tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=h, num_hidden_layers=LAYERS, num_attention_heads=h // 32, intermediate_size=4 * h,
            image_size=64, patch_size=8, num_labels=LABELS,
        )
    ),
}  # fmt: skip


def rows(family: str, number: int) -> list[dict[str, torch.Tensor]]:
    """Random inputs, each with a label."""
    torch.manual_seed(0)
    labels = torch.randint(LABELS, (number,))
    if family == "vit":
        return [{"pixel_values": torch.randn(3, 64, 64), "labels": label} for label in labels]
    return [{"input_ids": torch.randint(3, 4000, (TOKENS,)), "labels": label} for label in labels]


def seconds_of_a_step(family: str, hidden: int, config: MultirateConfig, cycle: int) -> float:
    """Mean over whole cycles of a training run, the first left out."""
    tf.set_seed(0)
    steps = CYCLES * cycle + 1
    with tempfile.TemporaryDirectory() as folder:
        args = tf.TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=ROWS, report_to=[], save_strategy="no",
            disable_tqdm=True, use_cpu=True, logging_steps=steps, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = MultirateTrainer(
            model=FAMILIES[family](hidden), args=args, train_dataset=rows(family, 4 * ROWS), multirate=config,
            multirate_record=True,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):
            trainer.train()
        taken = read_record(folder).steps["seconds"]
    return statistics.fmean(taken[cycle + 1 :])


def realised(family: str, hidden: int, config: MultirateConfig, rounds: int) -> float:
    """Median of the ratios of runs that take turns."""
    cycle, ratios = config.schedule.cycle, []
    for _ in range(rounds):
        plain = seconds_of_a_step(family, hidden, MultirateConfig.off(), cycle)
        ratios.append(plain / seconds_of_a_step(family, hidden, config, cycle))
    return statistics.median(ratios)


def main(argv: list[str] | None = None) -> None:
    """Print the table and the errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--hidden", type=int, default=256, help="width of the networks")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of each setting")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    errors: dict[str, list[float]] = {"FLOPs": [], "measured": []}
    print("| model | setting | from FLOPs | measured | realised | error of FLOPs, % | of measured, % |")
    print("|---|---|---|---|---|---|---|")
    for family in options.families:
        batch = tf.default_data_collator(rows(family, ROWS))
        model = FAMILIES[family](options.hidden).train()
        for found in plan(model, batch, SETTINGS, measure=True):
            assert found.speedup_measured is not None  # it was asked for
            true = realised(family, options.hidden, SETTINGS[found.label], options.rounds)
            off = [100 * (value / true - 1) for value in (found.speedup, found.speedup_measured)]
            errors["FLOPs"].append(abs(off[0]))
            errors["measured"].append(abs(off[1]))
            figures = (
                f"{found.speedup:.2f} | {found.speedup_measured:.2f} | {true:.2f} | {off[0]:+.0f} | {off[1]:+.0f}"
            )
            print(f"| {family} | {found.label} | {figures} |", flush=True)
    for kind, values in errors.items():
        print(f"error of {kind}: mean {statistics.fmean(values):.1f} %, worst {max(values):.1f} %")


if __name__ == "__main__":
    main()
