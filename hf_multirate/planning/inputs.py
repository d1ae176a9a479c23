"""Validation of the model, the batch and the configurations of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.validation import reason, require_text, shown, wrong_type
from hf_multirate.controller.guards import require_model
from hf_multirate.planning.measure import loss_in


def require_arguments(model: Any, batch: Any, configs: Any) -> None:
    """Check the arguments of `hf_multirate.plan`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model has no parameters, or a parameter has no values.
    """
    require_model("plan()", model)
    if not isinstance(batch, Mapping):
        wrong_type("a batch", "a mapping from input names to tensors", batch)
    for name in batch:
        require_text("each name of an input", name)
    if not isinstance(configs, Mapping):
        wrong_type("configs", "a mapping from labels to MultirateConfig objects", configs)
    for label, config in configs.items():
        require_text("each label of a configuration", label)
        if not isinstance(config, MultirateConfig):
            wrong_type(f"the configuration {shown(label)}", "a MultirateConfig", config)
    _require_values(model)


def _require_values(model: nn.Module) -> None:
    if next(model.parameters(), None) is None:
        raise ValueError(
            f"{type(model).__name__} has no parameters, so there is nothing to train: give another model."
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"the parameter {name!r} is uninitialized: run the forward pass of lazy modules once.")
        if parameter.is_meta:
            raise ValueError(
                f"the parameter {name!r} has no values (meta device): create the model on a CPU or GPU, or call "
                "model.to_empty(device='cpu')."
            )
        if parameter.is_inference():
            raise ValueError(f"the parameter {name!r} was created in inference mode: create the model outside of it.")


def check_batch(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Check the batch by one forward and backward pass of its first rows.

    Raises:
        ValueError: the batch has no rows, forward or backward fails, or the loss has no gradient.
    """
    rows, _ = first_rows(batch)
    name = type(model).__name__
    try:
        with torch.random.fork_rng():
            output = model(**rows)
    except Exception as error:  # a user's model may raise any error
        raise ValueError(
            f"the forward pass of {name} failed for a batch of {describe_batch(batch)} ({reason(error)}). Give the "
            "inputs of the model, with labels. On the command line, use fewer tokens with --seq, another --task, or "
            "module:function with a function that returns a model and a batch."
        ) from error
    loss = loss_in(output, name, rows)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return  # raised for each configuration by `hf_multirate.model.partition.assign`
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of {name} has no gradient: return a loss that depends on trainable parameters, without "
            ".detach() or no_grad()."
        )
    try:
        torch.autograd.backward(loss)
    except Exception as error:
        raise ValueError(
            f"the backward pass of {name} failed ({reason(error)}): check that its loss can be trained."
        ) from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None


COUNTED_ROWS = 2
"""Rows of a batch that are run: work is proportional to rows, and batch norm needs more than one."""


def first_rows(batch: Any) -> tuple[Any, float]:
    """First `COUNTED_ROWS` rows of ``batch``, and the factor from them to the whole batch.

    Tensors whose first dimension differs from that of the first tensor are included whole, as are other values.

    Raises:
        ValueError: the batch has no rows.
    """
    rows = next((tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()), 0)
    if not rows:
        raise ValueError(
            f"a batch needs a tensor with rows, got {describe_batch(batch)}: give tensors with at least one row."
        )
    count = min(rows, COUNTED_ROWS)

    def take_rows(tensor: Tensor) -> Tensor:
        # Without a clone, a slice would keep, and count as, the memory of the whole batch.
        return torch.clone(tensor[:count] if tensor.dim() and tensor.shape[0] == rows else tensor)

    return recursively_apply(take_rows, batch), rows / count


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def describe_batch(batch: Any) -> str:
    """Description of a batch for error messages: keys, types and shapes, not values."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return f"{{{', '.join(f'{key!r}: {_shape(value)}' for key, value in batch.items())}}}"


def _shape(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
