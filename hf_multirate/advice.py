"""Warnings for set-ups that are correct but save less than the user will expect."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set

import torch
from torch import nn

from hf_multirate.config import MultirateConfig
from hf_multirate.cost import layers_of, step_cost
from hf_multirate.names import canonical, named


logger = logging.getLogger(__name__)


def warn_of_tied_head(config: MultirateConfig, partition: Mapping[str, Sequence[str]], model: nn.Module) -> None:
    """Say what it costs that one weight is both an embedding and something above the embedding.

    As part of the fast group such a weight sends backward down to the embedding at every step; as part
    of the slow one its upper use gets a gradient at refreshes only.
    """
    periods = {name: group.gradient_period for group in config.groups for name in partition[group.name]}
    owners = {group.name: group for group in config.groups}
    group_of = {name: owners[key] for key, names in partition.items() for name in names}
    for name, other in _tied_to_embedding(model):
        if name not in periods:
            continue
        if periods[name] == 1 and config.schedule.cycle > 1:
            logger.warning(
                "%r is an embedding tied to %r and in the fast rate group %r: backward runs down to it at every step. "
                "Leave it to a slow group to save that time.", name, other, group_of[name].name,
            )  # fmt: skip
        elif periods[name] > 1:
            # Nothing can be done about it: in a fast group it would cost all that is saved.
            logger.info(
                "%r is tied to the embedding %r: both get a gradient every %d steps, with rate group %r.",
                other, name, periods[name], group_of[name].name,
            )  # fmt: skip


def warn_of_lost_steps(
    config: MultirateConfig, partition: Mapping[str, Sequence[str]], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Say that a step which is to be lengthened may have been rounded away before."""
    for group in config.groups:
        lengthens = group.lr_scale != 1.0 or (group.period > 1 and group.idle in ("hold", "zero"))
        short = [name for name in partition[group.name] if parameters[name].dtype in (torch.bfloat16, torch.float16)]
        if lengthens and short:
            logger.warning(
                "rate group %r lengthens the steps of its optimizer (lr_scale, idle='hold' or 'zero'), and %d of its "
                "parameters are %s, e.g. %r: steps below the precision of a weight are lost before that. Keep such "
                "parameters in float32, with bf16=True for mixed precision.",
                group.name, len(short), parameters[short[0]].dtype, short[0],
            )  # fmt: skip


def _tied_to_embedding(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names of one parameter: as ``model.named_parameters()`` spells it, and in a module of another kind."""
    first = {id(parameter): name for name, parameter in named(model).items()}
    tied: dict[str, list[tuple[str, bool]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            place = canonical(f"{path}.{key}" if path else key)
            tied.setdefault(first[id(parameter)], []).append((place, isinstance(module, nn.Embedding)))
    pairs = []
    for name, places in tied.items():
        outside = [place for place, embedding in places if not embedding]
        if outside and any(embedding for _, embedding in places):
            pairs.append((name, outside[-1]))
    return pairs


def not_a_suffix(model: nn.Module, recorded: Sequence[str], live: Set[str]) -> str:
    """What to say when autograd recorded idle modules ``recorded`` although only ``live`` need a gradient."""
    layers = layers_of(model)
    names = {name for layer in layers for name in layer.parameters}
    full = step_cost(layers, names)
    shown = ", ".join(recorded[:3])
    return (
        f"backward runs through {len(recorded)} idle modules at fast-only steps, e.g. {shown}: something below them "
        "needs a gradient, so the time of their backward is not saved (predicted cost of this "
        f"step {step_cost(layers, live) / full:.2f} of a full one). "
        "Make the fast group a suffix of the forward pass ('head', 'last:N'). If it is one, the model or a hook marks "
        "an input as requiring a gradient: with a checkpoint of your own use use_reentrant=False; with Wav2Vec2 call "
        "freeze_feature_encoder()."
    )
