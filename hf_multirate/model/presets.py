"""Presets: the head, the last N blocks, a fraction of the depth, or one of N parts by depth.

Fast parameters save time only if they are a suffix of the forward pass: backward can then stop at the lowest of them.
The order of registration may differ from the order of execution. Modules whose order is uncertain are therefore slow,
which costs a few fast parameters but keeps the speed-up. The first fast step checks the result, see
`hf_multirate.backward.cost_check`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hf_multirate.config.rate_group import PresetValue
from hf_multirate.model.levels import base_of, levels_of, unwrap_peft
from hf_multirate.model.stacks import Stack, find_stack
from hf_multirate.model.unwrap import canonical_parameters


Levels = Callable[[nn.Module, str | None], tuple[Stack, dict[nn.Parameter, int]]]
"""Type of `parameter_levels`; callers that use many presets of one model pass a cached version."""


def parameter_levels(model: nn.Module, place: str | None = None) -> tuple[Stack, dict[nn.Parameter, int]]:
    """Stack of a model, and the level of each parameter; a tied parameter has the deepest level of its modules.

    Args:
        model: The model.
        place: Name of the module that contains the stack, or the end of that name; None for the whole model.

    Raises:
        ValueError: the model has no stack, or ``place`` matches no module or several.
    """
    stack = find_stack(model, place)
    levels: dict[nn.Parameter, int] = {}
    for module, level in levels_of(model, stack).items():
        for parameter in module.parameters(recurse=False):
            levels[parameter] = max(levels.get(parameter, 0), level)
    return stack, levels


def preset_names(
    kind: str, value: PresetValue, model: nn.Module, place: str | None = None, levels: Levels = parameter_levels
) -> frozenset[str]:
    """Canonical names of the parameters in a preset.

    A tied parameter belongs to a preset only if all modules that use it do.

    Args:
        kind: Kind of the preset. ``"head"``: all parameters outside ``model.base_model``. ``"last"``: the head, all
            modules above the stack, and the last blocks of the stack. ``"depth"``: as ``"last"``, with a fraction of
            the blocks. ``"part"``: the I-th of N parts of the stack from the top; the first part includes everything
            above the stack, and the last part everything below.
        value: None for ``"head"``, a number of blocks for ``"last"``, a fraction in (0, 1] for ``"depth"``,
            (I, N) for ``"part"``.
        model: A transformers model, a peft model around one, or any other module (not for ``"head"``).
        place: Name of the module that contains the stack, or the end of that name; None for the whole model.
        levels: `parameter_levels`, or a cached version of it.

    Raises:
        ValueError: the value is invalid, or the preset does not fit the model.

    >>> sorted(preset_names("last", 1, nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
    ['2.bias', '2.weight']
    """
    if kind == "head":
        if value is not None:
            raise ValueError(f"preset 'head' takes no value, got {value!r}; use 'head' or 'last:1'")
        members = set(head_parameters(model).values())
    elif kind == "part" and isinstance(value, tuple):
        members = _part_parameters(*value, *levels(model, place))
    elif kind in ("last", "depth"):
        _check_value(kind, value)
        members = _top_parameters(kind, value, *levels(model, place))
    else:
        raise ValueError(f"a preset must be one of 'head', 'last', 'depth', 'part', got {kind!r}")
    return frozenset(name for name, parameter in canonical_parameters(model).items() if parameter in members)


def _check_value(kind: str, value: PresetValue) -> None:
    if kind == "last" and (not isinstance(value, int) or value < 1):
        raise ValueError(f"preset 'last' takes a number of blocks, 1 or more, got {value!r}; for example 'last:1'")
    if kind == "depth" and (not isinstance(value, (int, float)) or not 0 < value <= 1):
        raise ValueError(f"preset 'depth' takes a fraction in (0, 1], got {value!r}; for example 'depth:0.25'")


def _block_count(kind: str, value: PresetValue, stack: Stack) -> int:
    assert isinstance(value, (int, float))  # checked before
    path, blocks = stack.path, len(stack.blocks)
    count = int(value) if kind == "last" else max(1, round(value * blocks))
    if count > blocks:
        raise ValueError(
            f"'last:{count}' asks for more than the {blocks} blocks of {path!r}; use at most last:{blocks}"
        )
    return count


def _top_parameters(kind: str, value: PresetValue, stack: Stack, levels: dict[nn.Parameter, int]) -> set[nn.Parameter]:
    """Parameters of the last blocks of the stack and of all modules above the stack."""
    count = _block_count(kind, value, stack)
    return {parameter for parameter, level in levels.items() if level <= count}


def _part_parameters(part: int, parts: int, stack: Stack, levels: dict[nn.Parameter, int]) -> set[nn.Parameter]:
    blocks = len(stack.blocks)
    if parts > blocks:
        raise ValueError(
            f"'part:{part}/{parts}' asks for {parts} parts of the {blocks} blocks of {stack.path!r}; "
            f"use at most {blocks}"
        )
    # If the parts cannot be equal, the lower ones are larger, which makes more steps cheap.
    above = blocks * (part - 1) // parts if part > 1 else -1
    lowest = blocks + 1 if part == parts else blocks * part // parts
    return {parameter for parameter, level in levels.items() if above < level <= lowest}


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters outside the base model, by canonical name.

    Args:
        model: A transformers model, or a peft model around one.

    Raises:
        ValueError: the model has no base model, or no parameter outside of it.
    """
    base = base_of(model)
    outside = set() if base is None else set(unwrap_peft(model).parameters()) - set(base.parameters())
    if not outside:
        raise ValueError(_why_no_head(model))
    return {name: parameter for name, parameter in canonical_parameters(model).items() if parameter in outside}


def _why_no_head(model: nn.Module) -> str:
    inner = unwrap_peft(model)
    kind = type(inner).__name__
    base = base_of(model)
    if base is None:
        return f"{kind} has no base_model, so it has no head; use 'last:1' or a regular expression"
    if base is inner:
        where = f"in its attribute {inner.base_model_prefix!r}, so no parameter is known to be outside of it"
        return f"{kind} has no base model {where}; use 'last:1' or a regular expression"
    paths = {name for name, module in inner.named_modules(remove_duplicate=False) if module is base}
    prefixes = tuple(f"{path}." for path in paths)
    for names in _names_of_parameters(inner).values():
        outside = [name for name in names if not name.startswith(prefixes)]
        if outside:
            inside = next(name for name in names if name not in outside)
            return f"the head of {kind} is tied: {outside[0]!r} is {inside!r} of its base model; use 'last:1'"
    return f"{kind} has no parameters outside its base model; use 'last:1'"


def _names_of_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """All names of each parameter: more than one for tied weights."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names
