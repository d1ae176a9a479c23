"""From a contender to a Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Trainer, TrainingArguments

from contenders import Contender
from contenders.blocks import LISA, BAdam
from contenders.importance import ImportanceTrainer
from hf_multirate import MultirateConfig, MultirateTrainer
from hf_multirate.model.partition import assign


Made = tuple[nn.Module, dict[str, Any]]
"""A model, and further arguments of Trainer."""


def make_trainer(contender: Contender, model: nn.Module, args: TrainingArguments, **settings: Any) -> Trainer:
    """A Trainer for ``model``; ``settings`` are its other arguments."""
    if contender.config is not None:
        kind = ImportanceTrainer if contender.kind == "importance" else MultirateTrainer
        return kind(model, args, multirate=contender.config, **settings)
    makers: dict[str, Callable[..., Made]] = {"frozen": _frozen, "lora": _lora, "lisa": _lisa, "badam": _badam}
    more: dict[str, Any] = {}
    if contender.kind != "plain":
        model, more = makers[contender.kind](model, args, **contender.options)
    return Trainer(model, args, **settings, **more)


def _frozen(model: nn.Module, args: TrainingArguments, trained: str) -> Made:
    del args
    kept = set(assign(MultirateConfig.two_rate(trained), model)["fast"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return model, {}


def _lora(model: nn.Module, args: TrainingArguments, rank: int, ratio: float | None = None) -> Made:
    linear = any(isinstance(module, nn.Linear) for module in model.base_model.modules())
    targets = "all-linear" if linear else r".*\.convolution"
    head = [name for name, _ in model.named_children() if name not in (model.base_model_prefix, "dropout")]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=head)
    if "CausalLM" in type(model).__name__:
        config.task_type, config.modules_to_save = "CAUSAL_LM", None  # its head is no new one
    elif linear:
        config.task_type = "SEQ_CLS"
    model = get_peft_model(model, config)
    if ratio is None:
        return model, {}
    kind, words = (torch.optim.SGD, {"momentum": 0.9}) if args.optim == "sgd" else (torch.optim.AdamW, {"fused": True})
    optimizer = create_loraplus_optimizer(
        model, kind, lr=args.learning_rate, loraplus_lr_ratio=ratio, weight_decay=args.weight_decay, **words
    )
    return model, {"optimizers": (optimizer, None)}


def _lisa(model: nn.Module, args: TrainingArguments, active: int, interval: int) -> Made:
    return model, {"callbacks": [LISA(model, active, interval, args.seed)]}


def _badam(model: nn.Module, args: TrainingArguments, interval: int) -> Made:
    return model, {"callbacks": [BAdam(model, interval, args.seed)]}
