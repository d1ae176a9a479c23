"""Warnings for set-ups that are correct but save less time than expected."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import parse_preset, place_in
from hf_multirate.model.cost_model import boundary, layers_of
from hf_multirate.model.stacks import comparable_stacks, find_stack
from hf_multirate.model.unwrap import canonical_name, canonical_parameters, is_compiled


logger = logging.getLogger(__name__)

AVX2 = "AVX2"
"""What torch calls the vector instructions of a processor without AVX-512."""


def warn_of_tied_head(config: MultirateConfig, partition: Mapping[str, Sequence[str]], model: nn.Module) -> None:
    """Log the consequences of a weight that is tied to an embedding, such as the head of a language model.

    In a fast group, backward runs down to the embedding at every step. In a slow group, the head gets a gradient only
    at refreshes.
    """
    periods = {name: group.gradient_period for group in config.groups for name in partition[group.name]}
    groups = {group.name: group for group in config.groups}
    group_of = {name: groups[key] for key, names in partition.items() for name in names}
    tied = [pair for pair in _tied_to_embedding(model) if pair[0] in periods]
    # If the whole decoder is fast, the tied weight is not the reason that backward runs down to the embedding.
    lowest = boundary(layers_of(model), {key for key in periods if periods[key] == 1}) if tied else None
    for name, other in tied:
        if periods[name] == 1 and config.schedule.cycle > 1 and name == lowest:
            logger.warning(
                "%r is an embedding tied to %r and in the fast rate group %r: backward runs down to it at every step. "
                "Assign it to a slow group to save that time.", name, other, group_of[name].name,
            )  # fmt: skip
        elif periods[name] > 1:
            # Information only: in a fast group the weight would cost the whole saving.
            logger.info(
                "%r is tied to the embedding %r: both get a gradient every %d steps, with rate group %r.",
                other, name, periods[name], group_of[name].name,
            )  # fmt: skip


def warn_of_towers(config: MultirateConfig, model: nn.Module) -> None:
    """Warn if a preset without a module name could apply to several stacks of comparable size."""
    presets = [group.patterns[0] for group in config.groups if group.patterns and parse_preset(group.patterns[0])]
    unnamed = [preset for preset in presets if preset != "head" and place_in(preset) is None]
    if not unnamed:
        return
    stack = find_stack(model)
    others = [other for other in comparable_stacks(model, stack) if not _is_encoder_of(other.path, stack.path)]
    if others:
        logger.warning(
            "the preset %r applies to the blocks of %r (%s parameters), not to those of %s. To choose another stack, "
            "name it as in %r.",
            unnamed[0], stack.path, f"{stack.size:,}",
            ", ".join(f"{other.path!r} ({other.size:,})" for other in others),
            f"{unnamed[0]}@{others[0].path}",
        )  # fmt: skip


def _is_encoder_of(path: str, decoder_path: str) -> bool:
    """Whether these are the stacks of an encoder and its decoder: presets always apply to the decoder."""
    return "encoder" in path and "decoder" in decoder_path and "decoder" not in path


def warn_of_lost_steps(
    config: MultirateConfig, partition: Mapping[str, Sequence[str]], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Warn if steps of low-precision parameters are scaled or repeated when they may have been rounded to zero."""
    for group in config.groups:
        names = [name for name in partition[group.name] if parameters[name].dtype in (torch.bfloat16, torch.float16)]
        if group.random_subset is not None and names:
            logger.warning(
                "rate group %r scales the steps of the optimizer because of its random subset, and %d of its "
                "parameters are %s, e.g. %r. Steps below the precision of a weight are lost before they are "
                "scaled. Keep such parameters in float32, and use bf16=True for mixed precision.",
                group.name, len(names), parameters[names[0]].dtype, names[0],
            )  # fmt: skip
        elif group.idle == "drift" and names:
            logger.warning(
                "rate group %r drifts, and %d of its parameters are %s, e.g. %r. Drift steps below the precision of a "
                "weight are lost. Keep such parameters in float32, and use bf16=True for mixed precision, or use "
                "idle='freeze'.", group.name, len(names), parameters[names[0]].dtype, names[0],
            )  # fmt: skip


def warn_of_emulated_precision(config: MultirateConfig, parameters: Iterable[nn.Parameter]) -> None:
    """Warn if inactive modules run in a precision that the processor has no vector instructions for."""
    if config.inactive_dtype and emulates_low_precision() and all(p.device.type == "cpu" for p in parameters):
        logger.warning(
            "inactive_dtype=%r: this processor has no instructions beyond %s, so products of matrices in this "
            "precision can take 30 times as long as in float32. Remove inactive_dtype.",
            config.inactive_dtype, AVX2,
        )  # fmt: skip


def emulates_low_precision() -> bool:
    """Whether the processor has no vector instructions beyond AVX2, and so none for bfloat16 and float16.

    A product of matrices in these takes about 30 times the seconds of one in float32.
    """
    return torch.backends.cpu.get_cpu_capability() == AVX2


def _tied_to_embedding(model: nn.Module) -> list[tuple[str, str]]:
    """Weights that an embedding shares with another kind of module: (canonical name, name in the other module)."""
    canonical = {id(parameter): name for name, parameter in canonical_parameters(model).items()}
    uses: dict[str, list[tuple[str, bool]]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = canonical_name(f"{path}.{key}" if path else key)
            uses.setdefault(canonical[id(parameter)], []).append((name, isinstance(module, nn.Embedding)))
    pairs = []
    for name, names_in_modules in uses.items():
        others = [other for other, is_embedding in names_in_modules if not is_embedding]
        if others and any(is_embedding for _, is_embedding in names_in_modules):
            pairs.append((name, others[-1]))
    return pairs


def not_a_suffix(recorded: Sequence[str], above: Sequence[str], lowest: str | None, figures: str) -> str:
    """Warning that autograd recorded inactive modules.

    Args:
        recorded: Names of the inactive modules that were recorded.
        above: Those of them that run after ``lowest``.
        lowest: Name of the active module that runs first.
        figures: Predicted and measured cost.
    """
    problem = f"backward runs through {len(recorded)} inactive modules at fast steps"
    if above:
        return (
            f"{problem}: {', '.join(above[:3])} are slow but lie above {lowest!r}, which is fast, so the time of "
            f"their backward is not saved ({figures}). Add them to the fast group, or remove {lowest!r} from it. The "
            "fast group should be a suffix of the forward pass, as 'head' and 'last:N' are."
        )
    return (
        f"{problem}, e.g. {', '.join(recorded[:3])}: one of their inputs requires a gradient although all modules "
        f"below are inactive, so the time of their backward is not saved ({figures}). The model or a hook sets "
        "requires_grad on that input. For your own calls of torch.utils.checkpoint, pass use_reentrant=False; for "
        "Wav2Vec2, call freeze_feature_encoder()."
    )


def drops_layers(model: nn.Module) -> str | None:
    """Warning for a model whose configuration has ``layerdrop``; None if it has none."""
    rates = {
        key: value
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for key, value in vars(module.config).items()
        if "layerdrop" in key.replace("_", "") and isinstance(value, (int, float)) and value > 0
    }
    if not rates:
        return None
    settings = ", ".join(f"{key}={value}" for key, value in rates.items())
    return (
        f"the configuration of the model drops layers at random ({settings}): a slow layer that is dropped at its "
        "refresh gets no gradient and is not updated until the next one. Set layerdrop to 0 for a gradient at every "
        "refresh."
    )


def too_many_graphs(model: nn.Module, kinds: int) -> str | None:
    """Warning for a compiled model that needs more graphs than torch compiles; None if there is no such problem.

    Args:
        model: The model with its wrappers.
        kinds: Number of kinds of steps, each of which needs a graph.
    """
    limit: int = torch._dynamo.config.recompile_limit
    if kinds <= limit or not is_compiled(model):
        return None
    return (
        f"the rate groups make {kinds} kinds of steps, and each needs a graph of its own, but torch.compile makes at "
        f"most {limit} graphs of a function. Further kinds of steps would run uncompiled. Set "
        f"torch._dynamo.config.recompile_limit = {2 * kinds}, or use fewer periods."
    )
