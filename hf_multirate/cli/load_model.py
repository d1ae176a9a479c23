"""Model and batch for planning: from a hub name or folder (without weights), or from a user's function."""

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
"""Task names of the hub, and the auto class for each."""

PAIR = 2
"""Length of the tuple of a model and a batch."""


@dataclass(frozen=True)
class BatchSize:
    """Number of rows of a batch, and number of tokens of each row."""

    rows: int
    tokens: int


def load(name: str, task: str | None, size: BatchSize) -> tuple[nn.Module, Mapping[str, Any]]:
    """Load a model in training mode, and a batch for it.

    Args:
        name: Hub name, folder with a ``config.json``, or ``module:function`` with a function that returns a model, or
            a model and a batch.
        task: One of `TASKS`; None for the class that the configuration names.
        size: Size of the batch, unless the function returns one.

    Raises:
        ValueError: the model cannot be loaded, or no batch can be created for it.
    """
    model, batch = _from_function(name) if _is_function(name) else (_from_config(name, task), None)
    model.train()
    return model, _create_batch(model, size) if batch is None else batch


def _is_function(name: str) -> bool:
    return ":" in name and not os.path.exists(name)


def _from_function(name: str) -> tuple[nn.Module, Mapping[str, Any] | None]:
    path, _, function = name.partition(":")
    with _restored_environment():
        sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(path)
            if function not in vars(module):
                raise ValueError(f"the module {path} has no {function!r}")
            result = vars(module)[function]()
        except BaseException as error:  # the user's code may raise anything, including SystemExit
            raise ValueError(f"{name!r} could not be called ({reason(error)}).") from error
    model, batch = result if isinstance(result, tuple) and len(result) == PAIR else (result, None)
    if not isinstance(model, nn.Module):
        returned = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(model).__name__
        raise ValueError(f"{name!r} returned {returned}: return a model, or a model and a batch.")
    return model, batch


@contextmanager
def _restored_environment() -> Iterator[None]:
    """Context manager that restores the working folder, the module search path and the grad mode."""
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
    except Exception as error:  # an invalid configuration may cause any error
        raise ValueError(
            f"{name!r} could not be loaded ({reason(error)}). Give a hub name (with a network connection), a folder "
            "with a config.json, or module:function. Use --task if the configuration names no class."
        ) from error
    return model


def _class_of(config: PretrainedConfig) -> Any:
    names = config.architectures or []
    if not names or names[0] not in dir(transformers):
        raise ValueError(f"its configuration names the unknown class {names}: give the task with --task")
    return getattr(transformers, names[0])


def _create_batch(model: nn.Module, size: BatchSize) -> dict[str, Tensor]:
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"no batch can be created for {type(model).__name__}: return both a model and a batch from the function."
        )
    try:
        return _random_batch(model, size)
    except (AttributeError, MemoryError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"no batch of {size.rows} rows of {size.tokens} tokens can be created for {type(model).__name__} "
            f"({reason(error)}): use a smaller batch, or module:function with a function that returns a model and a "
            "batch."
        ) from error


def _random_batch(model: PreTrainedModel, size: BatchSize) -> dict[str, Tensor]:
    """Random inputs, and labels."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        side = vars(model.config).get("image_size", 224)
        sides = (side, side) if isinstance(side, int) else tuple(side)
        channels = vars(model.config).get("num_channels", 3)
        inputs = {"pixel_values": torch.randn(size.rows, channels, *sides, generator=generator)}
    elif model.main_input_name == "input_ids":
        tokens = torch.randint(3, config.vocab_size, (size.rows, size.tokens), generator=generator)
        if model.config.is_encoder_decoder and config.eos_token_id is not None:
            # Classifiers of BART and T5 look for the end of each row, and only there.
            tokens[tokens == config.eos_token_id] = (config.eos_token_id + 1) % config.vocab_size
            tokens[:, -1] = config.eos_token_id
        if config.pad_token_id is None:  # a classifier on a decoder looks for the last token that is no padding
            config.pad_token_id = 0
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    else:
        raise ValueError(
            f"no batch can be created for {type(model).__name__}, whose main input is {model.main_input_name!r}: use "
            "module:function with a function that returns a model and a batch."
        )
    return {**inputs, **_labels(model, inputs)}


def _labels(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kind, tokens = type(model).__name__, next(iter(inputs.values()))
    zeros = torch.zeros(len(tokens), dtype=torch.long)
    if "QuestionAnswering" in kind:
        return {"start_positions": zeros, "end_positions": zeros}
    if any(word in kind for word in ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration")):
        return {"labels": tokens}
    if "TokenClassification" in kind:
        return {"labels": torch.zeros_like(tokens)}
    if model.config.problem_type == "multi_label_classification":
        return {"labels": torch.zeros(len(tokens), model.config.num_labels or 1)}
    return {"labels": zeros}
