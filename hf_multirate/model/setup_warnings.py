"""Warnings for set-ups that are correct but save less than the user will expect."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import parse_preset, place_in
from hf_multirate.model.cost_model import boundary, layers_of
from hf_multirate.model.stacks import find_stack, rivals
from hf_multirate.model.unwrap import canonical_name, canonical_parameters


logger = logging.getLogger(__name__)


def warn_of_tied_head(config: MultirateConfig, partition: Mapping[str, Sequence[str]], model: nn.Module) -> None:
    """Say what it costs that one weight is both an embedding and something above the embedding.

    As part of the fast group such a weight sends backward down to the embedding at every step; as part
    of the slow one its upper use gets a gradient at refreshes only.
    """
    periods = {name: group.gradient_period for group in config.groups for name in partition[group.name]}
    owners = {group.name: group for group in config.groups}
    group_fn = {name: owners[key] for key, names in partition.items() for name in names}
    tied = [pair for pair in _tied_to_embedding(model) if pair[0] in periods]
    # In a decoder that is fast as a whole nothing runs down to the embedding for its own sake.
    lowest = boundary(layers_of(model), {key for key in periods if periods[key] == 1}) if tied else None
    for name, other in tied:
        if periods[name] == 1 and config.schedule.cycle > 1 and name == lowest:
            logger.warning(
                "%r is an embedding tied to %r and in the fast rate group %r: backward runs down to it at every step. "
                "Leave it to a slow group to save that time.", name, other, group_fn[name].name,
            )  # fmt: skip
        elif periods[name] > 1:
            # Nothing can be done about it: in a fast group it would cost all that is saved.
            logger.info(
                "%r is tied to the embedding %r: both get a gradient every %d steps, with rate group %r.",
                other, name, periods[name], group_fn[name].name,
            )  # fmt: skip


def warn_of_towers(config: MultirateConfig, model: nn.Module) -> None:
    """Say which of several stacks of comparable size a preset is about, unless it names one."""
    presets = [group.patterns[0] for group in config.groups if group.patterns and parse_preset(group.patterns[0])]
    unnamed = [preset for preset in presets if preset != "head" and place_in(preset) is None]
    if not unnamed:
        return
    stack = find_stack(model)
    others = [other for other in rivals(model, stack) if not _follow(other.path, stack.path)]
    if others:
        logger.warning(
            "%r is taken for the blocks of %r, %s parameters, and not %s: name another one as in %r.",
            unnamed[0], stack.path, f"{stack.size:,}",
            ", ".join(f"those of {other.path!r}, {other.size:,}" for other in others),
            f"{unnamed[0]}@{others[0].path}",
        )  # fmt: skip


def _follow(one: str, other: str) -> bool:
    """Whether these are the stacks of an encoder and its decoder, which leave no choice."""
    return "encoder" in one and "decoder" in other and "decoder" not in one


def warn_of_lost_steps(
    config: MultirateConfig, partition: Mapping[str, Sequence[str]], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Say that a step which is to be lengthened may have been rounded away before."""
    for group in config.groups:
        lengthens = group.lr_scale != 1.0 or (group.period > 1 and group.idle == "long_step")
        lengthens = lengthens or group.random_subset is not None
        short = [name for name in partition[group.name] if parameters[name].dtype in (torch.bfloat16, torch.float16)]
        if lengthens and short:
            logger.warning(
                "rate group %r lengthens the steps of its optimizer (lr_scale, long steps, a random subset), and "
                "%d of its parameters are %s, e.g. %r: steps below the precision of a weight are lost before that. "
                "Keep such parameters in float32, with bf16=True for mixed precision.",
                group.name, len(short), parameters[short[0]].dtype, short[0],
            )  # fmt: skip


def _tied_to_embedding(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names of one parameter: as ``model.named_parameters()`` spells it, and in a module of another kind."""
    first = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    tied: dict[str, list[tuple[str, bool]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            place = canonical_name(f"{path}.{key}" if path else key)
            tied.setdefault(first[id(parameter)], []).append((place, isinstance(module, nn.Embedding)))
    pairs = []
    for name, places in tied.items():
        outside = [place for place, embedding in places if not embedding]
        if outside and any(embedding for _, embedding in places):
            pairs.append((name, outside[-1]))
    return pairs


def not_a_suffix(recorded: Sequence[str], above: Sequence[str], lowest: str | None, figures: str) -> str:
    """The warning that autograd recorded idle modules.

    Args:
        recorded: Names of the idle modules.
        above: Those of them that run after ``lowest``.
        lowest: Name of the live module that runs first.
        figures: Predicted and seen cost.
    """
    what = f"backward runs through {len(recorded)} idle modules at fast-only steps"
    if above:
        return (
            f"{what}: {', '.join(above[:3])} are slow but lie above {lowest!r}, which is fast, so the time of their "
            f"backward is not saved ({figures}). Name them in the fast group as well, or leave {lowest!r} out of it: "
            "the fast group is best a suffix of the forward pass, as 'head' and 'last:N' are."
        )
    return (
        f"{what}, e.g. {', '.join(recorded[:3])}: an input of theirs requires a gradient although all below is idle, "
        f"so the time of their backward is not saved ({figures}). The model or a hook marks that input: with a "
        "checkpoint of your own use use_reentrant=False; with Wav2Vec2 call freeze_feature_encoder()."
    )


def drops_layers(model: nn.Module) -> str | None:
    """What to say of a model whose configuration drops layers (``layerdrop``); None if it does not."""
    rates = {
        key: value
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for key, value in vars(module.config).items()
        if "layerdrop" in key.replace("_", "") and isinstance(value, (int, float)) and value > 0
    }
    if not rates:
        return None
    told = ", ".join(f"{key}={value}" for key, value in rates.items())
    return (
        f"the configuration of the model drops layers at random ({told}): a slow layer that is dropped at its turn "
        "gets no gradient and stays as it is until the next one. Set it to 0 for a gradient at each turn."
    )
