"""The speed-up that ``plan`` predicts beside the measured one: four families, three settings each.

    python -m benchmarks speed prediction
    python -m benchmarks speed prediction --families bert --rounds 1 --hidden 32    # a quick try

A prediction is made from FLOPs only, and from steps timed on this machine. Then standard and multirate training take
turns, both by `hf_multirate.MultirateTrainer`; realised is the ratio of their mean seconds of a step, over whole
cycles.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as tf
from torch import nn

from benchmarks import configs
from benchmarks.commands import parser_of
from benchmarks.speed.harness import Timer, interleave, ratios
from benchmarks.tables import table
from hf_multirate import MultirateConfig, MultirateTrainer, plan
from hf_multirate.reporting.run_record import read_record


SETTINGS = {
    "head, period 5": configs.two_rate("head", 5),
    "last:1, period 5": configs.two_rate("last:1", 5),
    "ladder 1,2,4": configs.ladder([1, 2, 4]),
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
    timer, cycle = Timer(), config.schedule.cycle

    def block(kind: str, setting: MultirateConfig, _: int) -> None:
        timer.add(kind, seconds_of_a_step(family, hidden, setting, cycle))

    kinds = {"baseline": configs.off(), "multirate": config}
    blocks = {kind: partial(block, kind, setting) for kind, setting in kinds.items()}
    interleave(blocks, rounds, timer, warm_up=0)
    return statistics.median(ratios(timer.seconds["baseline"], timer.seconds["multirate"]))


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Print the table and the errors. Returns the absolute errors in percent, by kind of prediction."""
    parser = parser_of("python -m benchmarks speed prediction", __doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--hidden", type=int, default=256, help="width of the networks (default: 256)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs of each setting (default: 3)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    errors: dict[str, list[float]] = {"FLOPs": [], "measured": []}
    lines = []
    for family in options.families:
        batch = tf.default_data_collator(rows(family, ROWS))
        model = FAMILIES[family](options.hidden).train()
        for found in plan(model, batch, SETTINGS, measure=True):
            true = realised(family, options.hidden, SETTINGS[found.label], options.rounds)
            off = [100 * (value / true - 1) for value in (found.speedup, found.speedup_measured)]
            for kind, error in zip(errors, off, strict=True):
                errors[kind].append(abs(error))
            speedups = [f"{value:.2f}" for value in (found.speedup, found.speedup_measured, true)]
            lines.append([family, found.label, *speedups, *(f"{error:+.0f}" for error in off)])
    header = ["model", "setting", "from FLOPs", "measured", "realised", "error of FLOPs, %", "of measured, %"]
    print(table(header, lines))
    for kind, values in errors.items():
        print(f"error of {kind}: mean {statistics.fmean(values):.1f} %, worst {max(values):.1f} %")
    return errors
