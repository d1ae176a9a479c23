"""Parameter groups of an optimizer by rate group and learning rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.trainer_pt_utils import get_parameter_names

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.validation import require_number
from hf_multirate.model.stages import factors_of_run, settle_stages
from hf_multirate.model.unwrap import canonical_name, canonical_parameters, unwrap_model


FACTOR = "multirate_lr_factor"
"""Key of a parameter group: the factor that its learning rate contains."""

NAMES = "multirate_names"
"""Key of a parameter group: number of its parameters, and a digest of their names in their order."""

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Patterns of parameters without weight decay, as in `transformers.Trainer.get_decay_parameter_names`."""

Settings = dict[str, Any]
"""A parameter group of an optimizer: its parameters and their settings."""


def multirate_parameter_groups(
    model: nn.Module,
    config: MultirateConfig,
    lr: float | None = None,
    weight_decay: float | None = None,
    groups: Iterable[Mapping[str, Any]] | None = None,
) -> list[Settings]:
    """Parameter groups for an optimizer, with the learning rates of ``config``.

    `MultirateTrainer` creates such groups itself. Use this function for an optimizer of your own::

        optimizer = torch.optim.AdamW(multirate_parameter_groups(model, config, lr=2e-5, weight_decay=0.01))

    Args:
        model: The model.
        config: The configuration.
        lr: Learning rate of a parameter with factor 1. Optional if all ``groups`` have a learning rate.
        weight_decay: Weight decay of all parameters but biases and norms, as in `transformers.Trainer`. None leaves
            the choice to the optimizer. Not used with ``groups``.
        groups: Parameter groups to divide further, e.g. those of ``peft.optimizers.create_loraplus_optimizer``. Their
            settings are kept, and their learning rates are multiplied.

    Returns:
        One parameter group for each rate group, weight decay and learning rate. They contain the trainable parameters
        but those of groups with period ``"never"``.

    Raises:
        ValueError: the rate groups do not fit the model, or a group has no learning rate.
        TypeError: ``lr`` or ``weight_decay`` is not a number.
    """
    model = unwrap_model(model)
    rate = None if lr is None else require_number("lr", lr)
    if groups is None:
        groups = _by_decay(model, None if weight_decay is None else require_number("weight_decay", weight_decay))
    given = [{**({} if rate is None else {"lr": rate}), **_without_names(group)} for group in groups]
    if any(group.get("lr") is None for group in given):
        raise ValueError(
            "multirate_parameter_groups needs lr, the learning rate of a parameter with factor 1, got none."
        )
    keys, names, never = _keys(model, config)
    moving = [{**group, "params": [p for p in group["params"] if p not in never]} for group in given]
    return _divided([group for group in moving if group["params"]] if never else given, keys, names)


def _without_names(group: Mapping[str, Any]) -> Settings:
    """A parameter group with its parameters in a list, and their names beside them if torch got pairs."""
    given = group["params"]
    entries = [given] if isinstance(given, Tensor) else list(given)
    if not any(isinstance(entry, tuple) for entry in entries):
        return {**group, "params": entries}
    return {**group, "params": [p for _, p in entries], "param_names": [name for name, _ in entries]}


def divide_parameter_groups(optimizer: Optimizer, model: nn.Module, config: MultirateConfig) -> None:
    """Divide the parameter groups of a new ``optimizer`` by rate group and learning rate, in place.

    Nothing changes if all parameters have the same learning rate and no group takes long steps.

    Raises:
        ValueError: the rate groups do not fit the model, or the optimizer has no parameter groups of its own.
    """
    if not config.scales_learning_rates and not config.takes_long_steps:
        return
    model = unwrap_model(model)
    if "param_groups" not in vars(optimizer) or any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"the parameter groups of optimizer {type(optimizer).__name__} cannot have learning rates of their own. "
            "Remove lr_scale, head_lr_scale, lr_decay and idle='long_step', or use AdamW or SGD."
        )
    keys, names, _ = _keys(model, config)
    optimizer.param_groups[:] = _divided(optimizer.param_groups, keys, names)


Key = tuple[int, float]
"""Index of a rate group (of its groups in all stages), and a factor on the learning rate."""


def _keys(model: nn.Module, config: MultirateConfig) -> tuple[dict[Tensor, Key], dict[Tensor, str], set[Tensor]]:
    """Parameter -> key of its parameter group, parameter -> name, and the parameters that never get a gradient."""
    stages = settle_stages(config, model)
    factors = factors_of_run(stages, model)
    groups: dict[nn.Parameter, list[int]] = {}
    for stage in stages:
        members = stage.partition.parameters(model)
        for i, group in enumerate(stage.config.groups):
            for parameter in members[group.name].values():
                groups.setdefault(parameter, []).append(i)
    order = {indices: i for i, indices in enumerate(sorted({tuple(found) for found in groups.values()}))}
    parameters = canonical_parameters(model)
    never: set[Tensor] = {parameters[name] for name in stages[0].partition.never_names}
    keys: dict[Tensor, Key] = {p: (order[tuple(found)], factors[p]) for p, found in groups.items()}
    return keys, {p: n for n, p in parameters.items()}, never


def _divided(
    groups: Sequence[Mapping[str, Any]], keys: Mapping[Tensor, Key], names: Mapping[Tensor, str]
) -> list[Settings]:
    """Divide ``groups``. Those with the given learning rate come first, because Trainer logs the rate of the first."""
    divided: list[Settings] = []
    for group in groups:
        parts: dict[Key | None, list[Tensor]] = {}
        for parameter in group["params"]:
            parts.setdefault(keys.get(parameter), []).append(parameter)
        for key, parameters in sorted(parts.items(), key=lambda item: -1 if item[0] is None else item[0][0]):
            factor = 1.0 if key is None else key[1]
            of_part = [names.get(parameter, "") for parameter in parameters]
            part = {**group, "params": parameters, "lr": group["lr"] * factor, FACTOR: factor, NAMES: _digest(of_part)}
            if "param_names" in group:
                part["param_names"] = of_part
            divided.append(part)
    return sorted(divided, key=lambda group: abs(math.log(group[FACTOR])))


def _digest(names: Sequence[str]) -> str:
    return f"{len(names)}-{hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:32]}"


def check_state_of_groups(optimizer: Optimizer, model: nn.Module) -> None:
    """Check that a loaded state dict belongs to the parameter groups of ``optimizer``.

    torch assigns states to parameters by their place in the parameter groups. Another configuration may put parameters
    of equal shapes in another order.

    Args:
        optimizer: The optimizer. Groups that `_divided` has not made are not checked, nor those that were divided
            further, whose key has another number of parameters.
        model: The model.

    Raises:
        ValueError: a group was saved with other parameters.
    """
    names = {parameter: name for name, parameter in canonical_parameters(unwrap_model(model)).items()}
    for index, group in enumerate(optimizer.param_groups):
        saved, present = group.get(NAMES, ""), _digest([names.get(parameter, "") for parameter in group["params"]])
        if saved != present and saved.partition("-")[0] == present.partition("-")[0]:
            raise ValueError(
                f"parameter group {index} of the optimizer has the state of other parameters, because a checkpoint "
                "with other parameter groups was loaded. Learning rates of the head, of depth and of rate groups "
                "decide about parameter groups: resume with those of the checkpoint, and with rate groups in the same "
                "order."
            )


def _by_decay(model: nn.Module, weight_decay: float | None) -> list[Settings]:
    trainable = {name: p for name, p in canonical_parameters(model).items() if p.requires_grad}
    if weight_decay is None:
        return [{"params": list(trainable.values())}]
    named = get_parameter_names(model, [nn.LayerNorm], list(NO_DECAY))  # type: ignore[no-untyped-call]
    decayed = {canonical_name(name) for name in named}
    groups = [
        {"params": [p for name, p in trainable.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
