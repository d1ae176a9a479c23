"""Factors on the learning rate of each parameter: by rate group, for the head, and by depth."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.presets import head_parameters, parameter_levels


def learning_rate_factors(
    config: MultirateConfig, groups: Mapping[str, Mapping[str, nn.Parameter]], model: nn.Module
) -> dict[nn.Parameter, float]:
    """Factor on the learning rate of each parameter: ``lr_scale * head_lr_scale * lr_decay ** depth``.

    ``head_lr_scale`` applies to the parameters of the preset ``head``. The depth is 0 for the head and the top block,
    1 for the block below it, and the number of blocks for the embeddings. This is layer-wise learning-rate decay
    (Howard & Ruder 2018, Clark et al. 2020).

    Args:
        config: The configuration.
        groups: Rate group name -> parameter name -> parameter.
        model: The model.

    Returns:
        Parameter -> factor.

    Raises:
        ValueError: ``head_lr_scale`` is set and the model has no head, or ``lr_decay`` and the model has no blocks.
    """
    scales = {group.name: group.lr_scale for group in config.groups}
    head, depths = _head(config, model), _depths(config, model)
    factors: dict[nn.Parameter, float] = {}
    for group, members in groups.items():
        for parameter in members.values():
            factor = scales[group] * config.lr_decay ** depths.get(parameter, 0)
            factors[parameter] = factor * config.head_lr_scale if parameter in head else factor
    return factors


def _head(config: MultirateConfig, model: nn.Module) -> set[nn.Parameter]:
    if config.head_lr_scale == 1.0:
        return set()
    try:
        return set(head_parameters(model).values())
    except ValueError as error:
        raise ValueError(
            f"head_lr_scale is {config.head_lr_scale:g}, but the head is unknown: {error}. Set head_lr_scale=1, or "
            "give the rate group of the new parameters an lr_scale."
        ) from error


def _depths(config: MultirateConfig, model: nn.Module) -> dict[nn.Parameter, int]:
    if config.lr_decay == 1.0:
        return {}
    try:
        _, levels = parameter_levels(model)
    except ValueError as error:
        raise ValueError(
            f"lr_decay is {config.lr_decay:g}, but the depth of the parameters is unknown: {error}. Remove lr_decay, "
            "or give rate groups an lr_scale."
        ) from error
    return {parameter: max(0, level - 1) for parameter, level in levels.items()}
