"""Settle the rate groups of a model of which some parameters, or all, are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from hf_multirate.config import MultirateConfig
from hf_multirate.names import named
from hf_multirate.partition import FrozenError, Partition, assign


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
        trainable = {name for name, parameter in named(model).items() if parameter.requires_grad}
        names = {group: tuple(name for name in members if name in trainable) for group, members in whole.items()}
        kept = [group for group in config.groups if names[group.name]]
        if config.budget is None and all(group.gradient_period > 1 for group in kept):
            raise FrozenError(
                f"{error} The parameters of rate groups {[g.name for g in config.groups if g not in kept]} are frozen "
                "(requires_grad=False)."
            ) from error
        frozen = tuple(name for name in named(model) if name not in trainable)
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
    nothing = " There is nothing to save: training is that of Trainer." if settled.trains_plainly else ""
    return f"all parameters of the rate groups {gone} are frozen, so these groups are left out.{nothing}"
