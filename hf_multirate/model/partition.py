"""Assignment of parameters to rate groups: each trainable parameter belongs to the first group that matches it."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

from torch import nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import PRESETS, RateGroup, parse_preset, place_in
from hf_multirate.model.never import trainable_names
from hf_multirate.model.presets import Levels, parameter_levels, preset_names
from hf_multirate.model.unwrap import canonical_parameters


class FrozenError(ValueError):
    """Raised if rate groups do not fit a model because some of its parameters are frozen."""


class Partition(Mapping[str, tuple[str, ...]]):
    """Mapping from rate group names to parameter names, in the order of ``model.named_parameters()``.

    Attributes:
        frozen: Names of the parameters that the user has frozen, which belong to no group.
        never: Names of the groups with period ``"never"`` -> names of their parameters. They are no groups of the
            mapping.
    """

    def __init__(
        self,
        groups: Mapping[str, tuple[str, ...]],
        frozen: tuple[str, ...],
        never: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._groups = dict(groups)
        self.frozen = frozen
        self.never = dict(never or {})

    def __getitem__(self, group: str) -> tuple[str, ...]:
        return self._groups[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def parameters(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Parameters of ``model`` by rate group and name: group name -> parameter name -> parameter."""
        parameters = canonical_parameters(model)
        return {group: {name: parameters[name] for name in names} for group, names in self._groups.items()}

    @property
    def never_names(self) -> tuple[str, ...]:
        """Names of the parameters that never get a gradient."""
        return tuple(name for names in self.never.values() for name in names)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(names)} parameters" for name, names in self._groups.items())
        never = f", never: {len(self.never_names)}" if self.never else ""
        return f"Partition({sizes}, frozen: {len(self.frozen)}{never})"


def assign(config: MultirateConfig, model: nn.Module) -> Partition:
    """Assign every trainable parameter of ``model`` to the first rate group that matches its name.

    The function ``group_fn`` of the config takes precedence over patterns.

    Raises:
        FrozenError: no parameter is trainable, or the active adapter of the model is frozen.
        ValueError: a group is empty, a parameter belongs to no group, or ``group_fn`` returns an unknown group.
    """
    parameters = canonical_parameters(model)
    trainable = trainable_names(model)
    frozen = tuple(name for name in parameters if name not in set(trainable))
    if not trainable:
        raise FrozenError(
            f"the model has no trainable parameter: all {len(frozen)} have requires_grad=False. Before training, set "
            "requires_grad=True for the parameters to train; load an adapter with is_trainable=True."
        )
    _check_adapter(model, trainable)
    owner = _groups_by_function(config, {name: parameters[name] for name in trainable})
    literal = {f"^{re.escape(name)}$": name for name in trainable}
    levels = lru_cache(maxsize=None)(parameter_levels)  # called once for each group of a ladder
    for group in config.groups:
        matched = _matches(group, model, trainable, literal, levels) + [
            name for name in trainable if owner.get(name) == group.name
        ]
        for name in matched:
            owner.setdefault(name, group.name)
        _check_not_empty(group, matched, owner, trainable)
    unassigned = [name for name in trainable if name not in owner]
    if unassigned:
        raise ValueError(
            f"{len(unassigned)} trainable parameters are in no rate group, e.g. {unassigned[:3]}. Add a last group "
            "with the pattern '.*', or freeze them with requires_grad=False."
        )
    names: dict[str, list[str]] = {group.name: [] for group in config.groups}
    for name in trainable:
        names[owner[name]].append(name)
    return Partition({group: tuple(members) for group, members in names.items()}, frozen)


def _check_adapter(model: nn.Module, trainable: list[str]) -> None:
    peft: Any = sys.modules.get("peft")  # not imported here: peft is optional, and slow to import
    if peft is None or not isinstance(model, peft.PeftModel):
        return
    frozen = all(model.peft_config[name].inference_mode for name in model.active_adapters)
    if frozen and not any(f".{adapter}" in name for adapter in model.active_adapters for name in trainable):
        raise FrozenError(
            f"no parameter of the active adapter is trainable, only {len(trainable)} parameters of the base model, "
            f"e.g. {trainable[:2]}. Load the adapter with is_trainable=True, or merge it with merge_and_unload()."
        )


def _groups_by_function(config: MultirateConfig, trainable: Mapping[str, nn.Parameter]) -> dict[str, str]:
    if config.group_fn is None:
        return {}
    names = [group.name for group in config.groups]
    owner = {}
    for name, parameter in trainable.items():
        group = config.group_fn(name, parameter)
        if group is not None and group not in names:
            raise ValueError(
                f"group_fn({name!r}, ...) returned {group!r}, which is not a rate group: return one of {names}, or "
                "None to leave the parameter to the patterns."
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
        return [literal[pattern] for pattern in group.patterns]  # faster for hundreds of blocks with whole names
    patterns = [re.compile(pattern) for pattern in group.patterns]
    return [name for name in trainable if any(pattern.search(name) for pattern in patterns)]


def _check_not_empty(group: RateGroup, matched: list[str], owner: dict[str, str], trainable: list[str]) -> None:
    if not matched and not group.patterns:
        raise ValueError(
            f"rate group {group.name!r} has no pattern, and group_fn returned its name for none of {len(trainable)} "
            f"trainable parameters, e.g. {trainable[-1]!r}. Remove the group, or return its name from group_fn."
        )
    if not matched:
        closest = difflib.get_close_matches(group.patterns[0], trainable, n=3, cutoff=0.0)
        raise ValueError(
            f"rate group {group.name!r} matches no trainable parameter.\n"
            f"  patterns:  {group.patterns}\n"
            f"  trainable: {len(trainable)} parameters, e.g. {trainable[-1]!r}\n"
            f"  closest:   {closest}\n"
            f"Give a regular expression that matches one of these names, or a preset: {PRESETS}."
        )
    if group.name not in owner.values():
        earlier = sorted({owner[name] for name in matched})
        raise ValueError(
            f"rate group {group.name!r} is empty: all {len(matched)} parameters that match {group.patterns} belong to "
            f"earlier groups, {earlier}. The first match wins: put the narrower group first."
        )


def settle(config: MultirateConfig, model: nn.Module) -> tuple[MultirateConfig, Partition]:
    """Assign parameters to rate groups, and remove groups without a trainable parameter.

    Groups with period ``"never"`` are removed too; `Partition.never` has their parameters.

    If patterns and presets do not fit only because of frozen parameters, they are applied to the model with all
    parameters trainable. For example, a slow group is removed if all parameters but the head are frozen.

    Returns:
        The config with the remaining groups, and their parameters.

    Raises:
        FrozenError: the groups would fit if fewer parameters were frozen.
        ValueError: the groups do not fit the model.
    """
    settled, partition = settle_with_never(config, model)
    return without_never(settled, partition, never_in(settled, partition))


def never_in(config: MultirateConfig, partition: Partition) -> frozenset[str]:
    """Names of the parameters in groups with period ``"never"``."""
    return frozenset(name for group in config.groups if group.is_never for name in partition[group.name])


def without_never(config: MultirateConfig, partition: Partition, names: Set[str]) -> tuple[MultirateConfig, Partition]:
    """Move the parameters ``names``, which never get a gradient, from the groups to `Partition.never`."""
    if not names:
        return config, partition
    members = {group: tuple(name for name in found if name not in names) for group, found in partition.items()}
    never = {group: tuple(name for name in found if name in names) for group, found in partition.items()}
    groups = [group for group in config.groups if members[group.name]]
    kept = {group.name: members[group.name] for group in groups}
    return replace(config, groups=groups), Partition(kept, partition.frozen, {k: v for k, v in never.items() if v})


def settle_with_never(config: MultirateConfig, model: nn.Module) -> tuple[MultirateConfig, Partition]:
    """As `settle`, with the groups that never get a gradient."""
    try:
        return config, assign(config, model)
    except FrozenError:
        raise
    except ValueError as error:
        unfrozen = _assign_unfrozen(config, model)
        if unfrozen is None:
            raise
        trainable = set(trainable_names(model))
        names = {group: tuple(name for name in members if name in trainable) for group, members in unfrozen.items()}
        groups = [group for group in config.groups if names[group.name]]
        if all(group.gradient_period != 1 for group in groups):
            raise FrozenError(
                f"{error} The parameters of rate groups {[g.name for g in config.groups if g not in groups]} are "
                "frozen (requires_grad=False)."
            ) from error
        frozen = tuple(name for name in canonical_parameters(model) if name not in trainable)
        return replace(config, groups=groups), Partition({group.name: names[group.name] for group in groups}, frozen)


def _assign_unfrozen(config: MultirateConfig, model: nn.Module) -> Partition | None:
    """Rate groups of ``model`` with all parameters trainable; None if they do not fit."""
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
            if parameter.is_floating_point() and not parameter.is_inference():  # other tensors have no gradient
                parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def left_out(given: MultirateConfig, settled: MultirateConfig) -> str | None:
    """Warning about groups of ``given`` that `settle` has removed; None if there are none."""
    names = {group.name for group in settled.groups}
    removed = [group.name for group in given.groups if group.name not in names and not group.is_never]
    if not removed:
        return None
    standard = settled.is_standard_training and not given.has_never
    consequence = ": every step is a full step, as in standard training" if standard else ""
    return f"all parameters of the rate groups {removed} are frozen, so these groups are left out{consequence}."
