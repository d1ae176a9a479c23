"""From a method to a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Trainer, TrainingArguments

from benchmarks import configs
from benchmarks.accuracy.block_methods import LISA, BAdam
from benchmarks.accuracy.methods import Method
from hf_multirate import MultirateTrainer
from hf_multirate.model.partition import assign


Built = tuple[nn.Module, dict[str, Any]]
"""A model, and further arguments of Trainer."""


def make_trainer(method: Method, model: nn.Module, args: TrainingArguments, **settings: Any) -> Trainer:
    """A Trainer for ``model``; ``settings`` are its other arguments."""
    if method.config is not None:
        return MultirateTrainer(model, args, multirate=method.config, **settings)
    model, more = BUILDERS[method.kind](model, args, **method.options)
    return Trainer(model, args, **settings, **more)


def _baseline(model: nn.Module, args: TrainingArguments) -> Built:
    del args
    return model, {}


def _frozen(model: nn.Module, args: TrainingArguments, trained: str) -> Built:
    del args
    kept = set(assign(configs.two_rate(trained, 5), model)["fast"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return model, {}


def _lora(model: nn.Module, args: TrainingArguments, rank: int, ratio: float | None = None) -> Built:
    linear = any(isinstance(module, nn.Linear) for module in model.base_model.modules())
    targets = "all-linear" if linear else r".*\.convolution"
    new_head = not model.can_generate()  # a language model keeps its own
    head = [name for name, _ in model.named_children() if name not in (model.base_model_prefix, "dropout")]
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=head if new_head else None
    )
    if linear:
        config.task_type = "SEQ_CLS" if new_head else "CAUSAL_LM"
    model = get_peft_model(model, config)
    if ratio is None:
        return model, {}
    kind, words = (torch.optim.SGD, {"momentum": 0.9}) if args.optim == "sgd" else (torch.optim.AdamW, {"fused": True})
    optimizer = create_loraplus_optimizer(
        model, kind, lr=args.learning_rate, loraplus_lr_ratio=ratio, weight_decay=args.weight_decay, **words
    )
    return model, {"optimizers": (optimizer, None)}


def _lisa(model: nn.Module, args: TrainingArguments, active: int, interval: int) -> Built:
    return model, {"callbacks": [LISA(model, active, interval, args.seed)]}


def _badam(model: nn.Module, args: TrainingArguments, interval: int) -> Built:
    return model, {"callbacks": [BAdam(model, interval, args.seed)]}


BUILDERS: dict[str, Callable[..., Built]] = {
    "baseline": _baseline,
    "frozen": _frozen,
    "lora": _lora,
    "lisa": _lisa,
    "badam": _badam,
}
