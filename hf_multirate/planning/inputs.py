"""What a plan needs of a model and a batch, found out before anything is planned."""

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
    """Look at the arguments of `hf_multirate.plan`.

    Raises:
        TypeError: one has another type.
        ValueError: the model has no parameters or no values.
    """
    require_model("plan()", model)
    if not isinstance(batch, Mapping):
        wrong_type("a batch", "a mapping of names of inputs to tensors", batch)
    for name in batch:
        require_text("each name of an input", name)
    if not isinstance(configs, Mapping):
        wrong_type("configs", "a mapping of labels to MultirateConfig objects", configs)
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
            raise ValueError(f"the parameter {name!r} has no shape yet: run a lazy module forward once.")
        if parameter.is_meta:
            raise ValueError(
                f"the parameter {name!r} has no values, as it is on the meta device: make the model on a CPU or GPU, "
                "or call model.to_empty(device='cpu')."
            )
        if parameter.is_inference():
            raise ValueError(f"the parameter {name!r} was made in inference mode: make the model outside of it.")


def try_out(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Run forward and backward of a few rows once.

    Raises:
        ValueError: the batch has no rows or does not run through the model, or its loss cannot be trained with.
    """
    part, _ = first_rows(batch)
    name = type(model).__name__
    try:
        with torch.random.fork_rng():
            output = model(**part)
    except Exception as error:  # it is the user's model: anything may go wrong in it
        raise ValueError(
            f"a batch of {summary(batch)} does not run through {name} ({reason(error)}). Give the inputs that the "
            "model takes, with labels; on the command line fewer tokens with --seq, another --task, or "
            "module:function of a function that returns a model and a batch."
        ) from error
    loss = loss_in(output, name, part)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return  # which each configuration refuses by itself
    if not loss.requires_grad:
        raise ValueError(
            f"the loss of {name} has no gradient: return it as a tensor that was made from trainable parameters, not "
            "from .detach() or under no_grad()."
        )
    try:
        torch.autograd.backward(loss)
    except Exception as error:
        raise ValueError(f"backward does not run through {name} ({reason(error)}).") from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None


COUNTED_ROWS = 2
"""Rows of a batch that are really run: work grows with rows, and batch norm wants more than one."""


def first_rows(batch: Any) -> tuple[Any, float]:
    """`COUNTED_ROWS` rows of ``batch``, and how many times as many it has.

    Tensors with another first dimension than the first tensor, and everything else, go into the part as they are.

    Raises:
        ValueError: the batch has no rows.
    """
    rows = next((tensor.shape[0] for tensor in _tensors(batch) if tensor.dim()), 0)
    if not rows:
        raise ValueError(f"a batch needs a tensor with rows, got {summary(batch)}: give tensors of one row or more.")
    count = min(rows, COUNTED_ROWS)

    def part(tensor: Tensor) -> Tensor:
        # A slice would hold, and count as, the memory of the whole batch.
        return torch.clone(tensor[:count] if tensor.dim() and tensor.shape[0] == rows else tensor)

    return recursively_apply(part, batch), rows / count


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(item)


def summary(batch: Any) -> str:
    """A batch as an error shows it: keys and types, not values."""
    if not isinstance(batch, Mapping):
        return type(batch).__name__
    return f"{{{', '.join(f'{key!r}: {_shape(value)}' for key, value in batch.items())}}}"


def _shape(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
