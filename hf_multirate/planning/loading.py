"""A model and a batch to plan with: from a hub name or folder, whose weights are not needed, or from a function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_multirate.planning.counting import loss_of
from hf_multirate.planning.rows import few_rows


TASKS: dict[str, Any] = {
    "text-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "fill-mask": transformers.AutoModelForMaskedLM,
    "text-generation": transformers.AutoModelForCausalLM,
    "text2text-generation": transformers.AutoModelForSeq2SeqLM,
    "image-classification": transformers.AutoModelForImageClassification,
}
"""Tasks by the names of the hub, and the class that makes a model for each."""


@dataclass(frozen=True)
class Size:
    """Rows of a batch, and tokens of a text."""

    rows: int
    tokens: int


def load(name: str, task: str | None, size: Size) -> tuple[nn.Module, Mapping[str, Any]]:
    """A model in training mode, and a batch for it.

    Args:
        name: A hub name, a folder with a ``config.json``, or ``module:function`` of a function that returns a model,
            or a model and a batch.
        task: One of `TASKS`; None for the class that the configuration names.
        size: Size of the batch, if it is made here.

    Raises:
        ValueError: the model cannot be loaded, or takes another batch than can be made for it.
    """
    model, batch = _from_function(name) if _is_function(name) else (_from_config(name, task), None)
    model.train()
    if batch is None:
        batch = _batch(model, size)
        _check(model, batch, name)
    return model, batch


def _is_function(name: str) -> bool:
    return ":" in name and not os.path.exists(name)


def _from_function(name: str) -> tuple[nn.Module, Mapping[str, Any] | None]:
    path, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        made = vars(importlib.import_module(path))[function]()
    except Exception as error:  # it is the user's code: anything may go wrong in it
        raise ValueError(f"{name!r} could not be called ({type(error).__name__}: {error}).") from error
    finally:
        sys.path.remove(os.getcwd())
    model, batch = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name!r} returned {type(model).__name__}: return a model, or a model and a batch.")
    return model, batch


def _from_config(name: str, task: str | None) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(name)
        maker = TASKS[task].from_config if task else _class_of(config)._from_config
        model: nn.Module = maker(config)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{name!r} could not be loaded ({type(error).__name__}: {' '.join(str(error).split())}). Give a hub name "
            "while connected, a folder with a config.json, or module:function; and --task if the configuration "
            "names no class."
        ) from error
    return model


def _class_of(config: PretrainedConfig) -> Any:
    names = config.architectures or []
    if not names or names[0] not in dir(transformers):
        raise ValueError(f"its configuration names the class {names}: say what it is for with --task")
    return getattr(transformers, names[0])


def _batch(model: nn.Module, size: Size) -> dict[str, Tensor]:
    """Random inputs and labels."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"no batch can be made for {type(model).__name__}: have the function return one too.")
    config = model.config.get_text_config()
    rows = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        side = vars(model.config).get("image_size", 224)
        sides = (side, side) if isinstance(side, int) else tuple(side)
        inputs = {
            "pixel_values": torch.randn(size.rows, vars(model.config).get("num_channels", 3), *sides, generator=rows)
        }
    elif model.main_input_name == "input_ids":
        tokens = torch.randint(3, config.vocab_size, (size.rows, size.tokens), generator=rows)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    else:
        raise ValueError(
            f"no batch can be made for {type(model).__name__}, which takes {model.main_input_name!r}: give "
            "module:function of a function that returns a model and a batch."
        )
    return {**inputs, **_labels(model, inputs)}


def _labels(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind, first = type(model).__name__, next(iter(inputs.values()))
    nothing = torch.zeros(len(first), dtype=torch.long)
    if "QuestionAnswering" in kind:
        return {"start_positions": nothing, "end_positions": nothing}
    if any(word in kind for word in ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration")):
        return {"labels": first}
    if "TokenClassification" in kind:
        return {"labels": torch.zeros_like(first)}
    return {"labels": nothing}


def _check(model: nn.Module, batch: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError` if the batch does not run: too long, or not what the model takes."""
    try:
        with torch.no_grad(), torch.random.fork_rng():
            loss_of(model, few_rows(batch)[0])
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        shapes = {key: tuple(value.shape) for key, value in batch.items()}
        raise ValueError(
            f"a batch of {shapes} does not run through {name!r} ({type(error).__name__}: {error}). Give fewer tokens "
            "with --seq, another --task, or module:function of a function that returns a model and a batch."
        ) from error
