"""Description of a configuration: a table of the rate groups, and the predicted speed-up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from torch import nn

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import NEVER, RateGroup
from hf_multirate.config.text import shortened
from hf_multirate.model.cost_model import StepCosts, boundary, layers_of
from hf_multirate.model.learning_rates import learning_rate_factors
from hf_multirate.model.partition import Partition
from hf_multirate.model.stages import SettledStage, speedup_of_stages
from hf_multirate.model.unwrap import canonical_parameters


def describe(config: MultirateConfig, partition: Partition, model: nn.Module) -> str:
    """Describe rate groups, boundary and predicted cost in lines of about 110 characters.

    Parameter names are shortened by layer: ``encoder.layer.{0-4}.*`` stands for all trainable parameters of five
    blocks. The predicted cost is a share of a full step, see `hf_multirate.model.cost_model`.
    """
    sizes = {name: parameter.numel() for name, parameter in canonical_parameters(model).items()}
    total = sum(sizes[name] for names in [*partition.values(), *partition.never.values()] for name in names)
    header = ("rate group", "period", "idle", "parameters", "share", "names")
    rows = [header]
    groups = [(group.name, str(group.period), _rule(group), partition[group.name]) for group in config.groups]
    for group_name, period, rule, members in [*groups, *((k, NEVER, "-", v) for k, v in partition.never.items())]:
        count = sum(sizes[name] for name in members)
        names = shorten_names(members)
        cells = (shortened(group_name), period, rule, f"{count:,}", f"{count / total:.1%}")
        rows += [(*cells, names[0]), *(("", "", "", "", "", name) for name in names[1:])]
    lines = align_columns(rows, left=(0, 2))
    if partition.frozen:
        count, frozen = sum(sizes[name] for name in partition.frozen), ", ".join(shorten_names(partition.frozen))
        lines.append(f"frozen by requires_grad=False, in no group: {count:,} parameters, {frozen}")
    return "\n".join([*lines, *_learning_rates(config, partition, model), *_costs(config, partition, model)])


def _learning_rates(config: MultirateConfig, partition: Partition, model: nn.Module) -> list[str]:
    """One line with the factors on the learning rate of each group, if there are any."""
    if not config.scales_learning_rates:
        return []
    groups = partition.parameters(model)
    factors = learning_rate_factors(config, groups, model)
    ranges = []
    for name, members in groups.items():
        own = sorted({factors[parameter] for parameter in members.values()})
        ranges.append(f"{shortened(name)} x{' to x'.join(f'{factor:.3g}' for factor in own[:: max(1, len(own) - 1)])}")
    return [f"learning rate of the groups: {', '.join(ranges)}"]


def describe_stages(stages: Sequence[SettledStage], model: nn.Module) -> str:
    """Describe each stage, and the predicted speed-up of the whole run."""
    texts, speedups, begin = [], [], 0.0
    layers = layers_of(model)
    for number, stage in enumerate(stages, 1):
        texts.append(f"stage {number} of {len(stages)}, from {begin:.0%} to {stage.until:.0%} of training")
        texts.append(describe(stage.config, stage.partition, model))
        names = [group.name for group in stage.config.groups]
        costs = StepCosts(names, stage.partition, layers, stage.partition.never_names)
        speedups.append(costs.speedup(stage.config.schedule.kinds))
        begin = stage.until
    return "\n".join([*texts, f"predicted speed-up of the run: {speedup_of_stages(stages, speedups):.2f}x"])


def _rule(group: RateGroup) -> str:
    redrawn = group.random_subset is not None and group.random_subset.redraw == "step"
    return group.idle if group.steps > 1 or redrawn else "-"


def align_columns(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Lines of aligned cells: the columns ``left`` to the left, all others to the right, the last one unchanged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for *cells, last in rows:
        aligned = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join((*aligned, last)).rstrip())
    return lines


def _costs(config: MultirateConfig, partition: Partition, model: nn.Module) -> list[str]:
    layers = layers_of(model)
    costs = StepCosts([group.name for group in config.groups], partition, layers, partition.never_names)
    kinds = config.schedule.kinds
    idle = partition.never or config.has_never
    if len(kinds) == 1 and not idle:
        subsets = [group.random_subset.fraction for group in config.groups if group.random_subset is not None]
        if config.is_standard_training or not subsets:
            return ["every step is a full step: standard training"]
        shares = ", ".join(f"{fraction:.0%}" for fraction in subsets)
        return [f"every step is a full step, with {shares} of a group at zero: no time is saved"]
    unit = "a step of standard training" if partition.never else "a full step"
    lines = []
    for groups in reversed(kinds):
        if len(groups) == len(config.groups) and not partition.never:
            continue
        members = [config.groups[i].name for i in groups]
        names = [shortened(name) for name in members]
        edge = boundary(layers, {name for group in members for name in partition[group]})
        lines.append(
            f"with {', '.join(names)} live: backward is skipped below {edge}, "
            f"predicted cost {costs.of(groups):.2f} of {unit}"
        )
    speedup = costs.speedup(kinds)
    steps = sum(kinds.values())
    return [*lines, f"predicted speed-up: {speedup:.2f}x" + (f" over a cycle of {steps} steps" if steps > 1 else "")]


def shorten_names(names: Sequence[str]) -> list[str]:
    """Shorten a list of names by combining those of one layer, and layers with consecutive numbers.

    >>> shorten_names(["layer.0.w", "layer.0.b", "layer.1.w", "layer.1.b", "head.w"])
    ['layer.{0-1}.*', 'head.w']
    """
    blocks: dict[str, list[int]] = {}
    order: dict[str, list[str]] = {}
    # A number at the start of a name is a block only if others have the same suffix; else it is part of a pipeline.
    suffixes = Counter(name.partition(".")[2] for name in names)
    for name in names:
        match = re.match(r"(.*?\.)?(\d+)\.", name)
        if match and (match.group(1) or suffixes[name[match.end() :]] > 1):
            prefix = match.group(1) or ""
            blocks.setdefault(prefix, [])
            if int(match.group(2)) not in blocks[prefix]:
                blocks[prefix].append(int(match.group(2)))
            order.setdefault(f"{prefix}#", [])
        else:
            order.setdefault(name.rpartition(".")[0], []).append(name)
    return [
        f"{key[:-1]}{_ranges(sorted(blocks[key[:-1]]))}.*" if key.endswith("#") else _combine_siblings(key, members)
        for key, members in order.items()
    ]


def _combine_siblings(path: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    leaves = ",".join(name.rpartition(".")[2] for name in names)
    return f"{path}.{{{leaves}}}" if path else leaves


def _ranges(numbers: Sequence[int]) -> str:
    """Ranges of numbers: ``{0-2,5}`` for 0, 1, 2 and 5; ``5`` for a single number."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
    return text if len(numbers) == 1 else f"{{{text}}}"
