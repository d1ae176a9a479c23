"""What a plan needs of a model and a batch, found out before anything is planned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hf_multirate.config import MultirateConfig
from hf_multirate.planning.counting import loss_in
from hf_multirate.planning.rows import few_rows, summary
from hf_multirate.validators import reason, require_model, require_text, shown, wrong_type


def require_arguments(model: Any, batch: Any, configs: Any) -> None:
    """Look at the arguments of `hf_multirate.plan`.

    Raises:
        TypeError: one has another type.
        ValueError: the model has no parameters or no values, or a configuration finds its periods while training.
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
        if config.budget is not None:
            raise ValueError(f"{shown(label)} finds its periods while training, so there is nothing to plan before.")
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
    part, _ = few_rows(batch)
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
