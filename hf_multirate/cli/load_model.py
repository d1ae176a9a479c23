"""A model and a batch to plan with: from a hub name or folder, whose weights are not needed, or from a function."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hf_multirate.config.validation import reason


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

PAIR = 2
"""What a function returns at most: a model and a batch."""


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
        ValueError: the model cannot be loaded, or no batch can be made for it.
    """
    model, batch = _from_function(name) if _is_function(name) else (_from_config(name, task), None)
    model.train()
    return model, _made_batch(model, size) if batch is None else batch


def _is_function(name: str) -> bool:
    return ":" in name and not os.path.exists(name)


def _from_function(name: str) -> tuple[nn.Module, Mapping[str, Any] | None]:
    path, _, function = name.partition(":")
    with _as_before():
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(path)
            if function not in vars(module):
                raise ValueError(f"the module {path} has no {function!r}")
            made = vars(module)[function]()
        except BaseException as error:  # it is the user's code: it may do anything, sys.exit() as well
            raise ValueError(f"{name!r} could not be called ({reason(error)}).") from error
    model, batch = made if isinstance(made, tuple) and len(made) == PAIR else (made, None)
    if not isinstance(model, nn.Module):
        what = f"{len(made)} things" if isinstance(made, tuple) else type(model).__name__
        raise ValueError(f"{name!r} returned {what}: return a model, or a model and a batch.")
    return model, batch


@contextmanager
def _as_before() -> Iterator[None]:
    """Put the working folder, the search path and the mode of autograd back, whatever the user's code changes."""
    folder, path, entries, grad = os.getcwd(), sys.path, list(sys.path), torch.is_grad_enabled()
    try:
        yield
    finally:
        sys.path, sys.path[:] = path, entries
        torch.set_grad_enabled(grad)
        os.chdir(folder)


def _from_config(name: str, task: str | None) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(name)
        maker = TASKS[task].from_config if task else _class_of(config)._from_config
        model: nn.Module = maker(config)
    except Exception as error:  # a configuration may hold anything
        raise ValueError(
            f"{name!r} could not be loaded ({reason(error)}). Give a hub name "
            "while connected, a folder with a config.json, or module:function; and --task if the configuration "
            "names no class."
        ) from error
    return model


def _class_of(config: PretrainedConfig) -> Any:
    names = config.architectures or []
    if not names or names[0] not in dir(transformers):
        raise ValueError(f"its configuration names the class {names}: say what it is for with --task")
    return getattr(transformers, names[0])


def _made_batch(model: nn.Module, size: Size) -> dict[str, Tensor]:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"no batch can be made for {type(model).__name__}: have the function return one too.")
    try:
        return _batch(model, size)
    except (AttributeError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"no batch of {size.rows} rows of {size.tokens} tokens can be made for {type(model).__name__} "
            f"({reason(error)}): give a smaller one, or module:function of a function that returns both."
        ) from error


def _batch(model: PreTrainedModel, size: Size) -> dict[str, Tensor]:
    """Random inputs and labels."""
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
