"""Names of parameters -> rate groups: first match wins, every trainable parameter is claimed once."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import PRESETS, RateGroup, parse_preset, place_in
from hf_multirate.model.presets import Levels, parameter_levels, preset_names
from hf_multirate.model.unwrap import canonical_parameters


class FrozenError(ValueError):
    """Rate groups do not fit a model as long as so many of its parameters are frozen."""


class Partition(Mapping[str, tuple[str, ...]]):
    """Rate group name -> names of its parameters, in the order of ``model.named_parameters()``.

    Parameters that did not require a gradient when the partition was made are in ``frozen`` and in no group.
    """

    def __init__(self, groups: Mapping[str, tuple[str, ...]], frozen: tuple[str, ...]) -> None:
        self._groups = dict(groups)
        self.frozen = frozen

    def __getitem__(self, group: str) -> tuple[str, ...]:
        return self._groups[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def parameters(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Rate group name -> parameter name -> parameter of ``model``, which the partition was made for."""
        parameters = canonical_parameters(model)
        return {group: {name: parameters[name] for name in names} for group, names in self._groups.items()}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(names)} parameters" for name, names in self._groups.items())
        return f"Partition({sizes}, frozen: {len(self.frozen)})"


def assign(config: MultirateConfig, model: nn.Module) -> Partition:
    """Give every trainable parameter of ``model`` to the first rate group that matches its name.

    Where the config has a function ``group_fn``, its word goes before patterns.

    Raises:
        FrozenError: nothing is trainable, or the model has an adapter that is frozen.
        ValueError: a group matches nothing or only what earlier groups took, a parameter is in no group, or a function
            names a group that is not there.
    """
    parameters = canonical_parameters(model)
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    frozen = tuple(name for name, parameter in parameters.items() if not parameter.requires_grad)
    if not trainable:
        raise FrozenError(
            f"the model has no trainable parameter: all {len(frozen)} have requires_grad=False. Set requires_grad on "
            "those to train before training begins; an adapter that was loaded needs is_trainable=True."
        )
    _check_adapter(model, trainable)
    owner = _named_by_function(config, {name: parameters[name] for name in trainable})
    literal = {f"^{re.escape(name)}$": name for name in trainable}
    levels = lru_cache(maxsize=None)(parameter_levels)  # a ladder asks for it once a group
    for group in config.groups:
        matched = _matches(group, model, trainable, literal, levels) + [
            name for name in trainable if owner.get(name) == group.name
        ]
        for name in matched:
            owner.setdefault(name, group.name)
        _check_not_empty(group, matched, owner, trainable)
    left_over = [name for name in trainable if name not in owner]
    if left_over:
        raise ValueError(
            f"{len(left_over)} trainable parameters are in no rate group, e.g. {left_over[:3]}. Add a last group with "
            "the pattern '.*', or freeze them with requires_grad=False."
        )
    names: dict[str, list[str]] = {group.name: [] for group in config.groups}
    for name in trainable:
        names[owner[name]].append(name)
    return Partition({group: tuple(members) for group, members in names.items()}, frozen)


def _check_adapter(model: nn.Module, trainable: list[str]) -> None:
    peft: Any = sys.modules.get("peft")  # slow to import, and without it there is no such model
    if peft is None or not isinstance(model, peft.PeftModel):
        return
    frozen = all(model.peft_config[name].inference_mode for name in model.active_adapters)
    if frozen and not any(f".{adapter}" in name for adapter in model.active_adapters for name in trainable):
        raise FrozenError(
            f"the model has an adapter of which nothing is trainable: only {len(trainable)} parameters of its base "
            f"are, e.g. {trainable[:2]}. Load the adapter with is_trainable=True, or merge it: merge_and_unload()."
        )


def _named_by_function(config: MultirateConfig, trainable: Mapping[str, nn.Parameter]) -> dict[str, str]:
    if config.group_fn is None:
        return {}
    names = [group.name for group in config.groups]
    owner = {}
    for name, parameter in trainable.items():
        group = config.group_fn(name, parameter)
        if group is not None and group not in names:
            raise ValueError(
                f"group_fn({name!r}, ...) returned {group!r}, which is no rate group: return one of {names}, or None "
                "to leave the parameter to the patterns."
            )
        if group is not None:
            owner[name] = group
    return owner


def _matches(
    group: RateGroup, model: nn.Module, trainable: list[str], literal: Mapping[str, str], levels: Levels
) -> list[str]:
    preset = parse_preset(group.patterns[0]) if group.patterns else None
    if preset is not None:
        members = preset_names(*preset, model, place_in(group.patterns[0]), levels)
        return [name for name in trainable if name in members]
    if group.patterns and all(pattern in literal for pattern in group.patterns):
        return [literal[pattern] for pattern in group.patterns]  # hundreds of blocks, whose names are known
    patterns = [re.compile(pattern) for pattern in group.patterns]
    return [name for name in trainable if any(pattern.search(name) for pattern in patterns)]


def _check_not_empty(group: RateGroup, matched: list[str], owner: dict[str, str], trainable: list[str]) -> None:
    if not matched and not group.patterns:
        raise ValueError(
            f"rate group {group.name!r} has no pattern, and group_fn named it for none of {len(trainable)} trainable "
            f"parameters, e.g. {trainable[-1]!r}. Leave the group out, or let the function return its name."
        )
    if not matched:
        close = difflib.get_close_matches(group.patterns[0], trainable, n=3, cutoff=0.0)
        raise ValueError(
            f"rate group {group.name!r} matches no trainable parameter.\n"
            f"  patterns:  {group.patterns}\n"
            f"  trainable: {len(trainable)} parameters, e.g. {trainable[-1]!r}\n"
            f"  closest:   {close}\n"
            f"Give a regular expression that is found in one of these names, or a preset: {PRESETS}."
        )
    if group.name not in owner.values():
        takers = sorted({owner[name] for name in matched})
        raise ValueError(
            f"rate group {group.name!r} is empty: all {len(matched)} parameters that {group.patterns} matches were "
            f"taken by the groups before it, {takers}. The first match wins: put the narrower group first."
        )


def settle(config: MultirateConfig, model: nn.Module) -> tuple[MultirateConfig, Partition]:
    """The rate groups that have a trainable parameter, and what is in them.

    Patterns and presets are read on the model as it is. Where they do not fit only because of frozen parameters, they
    are read on the model with all parameters trainable, and groups without a trainable one are left out: with all
    but the head frozen, a slow group is.

    Raises:
        FrozenError: the groups would fit if fewer parameters were frozen.
        ValueError: they do not fit the model.
    """
    try:
        return config, assign(config, model)
    except FrozenError:
        raise
    except ValueError as error:
        whole = _whole(config, model)
        if whole is None:
            raise
        trainable = {name for name, parameter in canonical_parameters(model).items() if parameter.requires_grad}
        names = {group: tuple(name for name in members if name in trainable) for group, members in whole.items()}
        kept = [group for group in config.groups if names[group.name]]
        if all(group.gradient_period > 1 for group in kept):
            raise FrozenError(
                f"{error} The parameters of rate groups {[g.name for g in config.groups if g not in kept]} are frozen "
                "(requires_grad=False)."
            ) from error
        frozen = tuple(name for name in canonical_parameters(model) if name not in trainable)
        return replace(config, groups=kept), Partition({group.name: names[group.name] for group in kept}, frozen)


def _whole(config: MultirateConfig, model: nn.Module) -> Partition | None:
    """The rate groups of ``model`` with all its parameters trainable; None if they do not fit that either."""
    with _all_trainable(model):
        try:
            return assign(config, model)
        except ValueError:
            return None


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            if parameter.is_floating_point() and not parameter.is_inference():  # others cannot have a gradient
                parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def left_out(given: MultirateConfig, settled: MultirateConfig) -> str | None:
    """What to say of a run whose ``given`` groups came to ``settled`` ones; None if there is nothing to say."""
    names = {group.name for group in settled.groups}
    gone = [group.name for group in given.groups if group.name not in names]
    if not gone:
        return None
    nothing = " There is nothing to save: training is that of Trainer." if settled.is_standard_training else ""
    return f"all parameters of the rate groups {gone} are frozen, so these groups are left out.{nothing}"
