"""Named choices of parameters: the head, the last N blocks, a fraction of the depth, one of N parts by depth.

A fast part saves time only if it is a suffix of the forward pass, because only then can the
backward pass stop at its lower edge. Module registration is not execution order, so wherever the
two may differ the doubtful module is left slow: that costs a few parameters, never the saving.
The first fast step shows what was wrong: see `hf_multirate.backward.cost_check`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hf_multirate.config.rate_group import PresetValue
from hf_multirate.model.levels import levels_of, unwrap
from hf_multirate.model.stacks import Stack, find_stack
from hf_multirate.model.unwrap import canonical_parameters


Levels = Callable[[nn.Module, str | None], tuple[Stack, dict[nn.Parameter, int]]]
"""What `parameter_levels` is; a caller that asks for many presets of one model remembers its answers."""


def parameter_levels(model: nn.Module, place: str | None = None) -> tuple[Stack, dict[nn.Parameter, int]]:
    """The stack, and how deep each parameter lies: where it is tied, the deepest of the levels of its modules."""
    stack = find_stack(model, place)
    levels: dict[nn.Parameter, int] = {}
    for module, level in levels_of(model, stack).items():
        for parameter in module.parameters(recurse=False):
            levels[parameter] = max(levels.get(parameter, 0), level)
    return stack, levels


def preset_names(
    kind: str, value: PresetValue, model: nn.Module, place: str | None = None, levels: Levels = parameter_levels
) -> frozenset[str]:
    """Names of the parameters in a preset, spelled as ``model.named_parameters()`` spells them.

    A tied parameter belongs to a preset only if every place it is used at does.

    Args:
        kind: ``"head"`` (everything outside ``model.base_model``), ``"last"`` (the head, what follows the stack, and
            the last blocks of the stack), ``"depth"`` (``"last"`` with a fraction of the blocks) or ``"part"`` (the
            I-th of N parts of the stack from the top; the first takes all above it and the last all below).
        value: Nothing for ``"head"``, a number of blocks for ``"last"``, a fraction in (0, 1] for ``"depth"``,
            I and N for ``"part"``.
        model: A transformers model, a peft model around one, or (not for ``"head"``) any module.
        place: Name of the module in which the stack is looked for, or the end of that name; None is all of the model.
        levels: `parameter_levels`, or a function that remembers what it returned.

    >>> sorted(preset_names("last", 1, nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
    ['2.bias', '2.weight']
    """
    if kind == "head":
        if value is not None:
            raise ValueError(f"preset 'head' takes no value, got {value!r}; write 'head', or 'last:1' for more")
        fast = _head(model)
        if not fast:
            raise ValueError(_why_no_head(model))
    elif kind == "part" and isinstance(value, tuple):
        fast = _part(*value, *levels(model, place))
    elif kind in ("last", "depth"):
        _check_value(kind, value)
        fast = _top(kind, value, *levels(model, place))
    else:
        raise ValueError(f"a preset is one of 'head', 'last', 'depth', 'part', got {kind!r}")
    return frozenset(name for name, parameter in canonical_parameters(model).items() if parameter in fast)


def stack_of(model: nn.Module, place: str | None = None) -> tuple[str, int]:
    """Path of the stack with the most trainable parameters, and its number of blocks."""
    stack = find_stack(model, place)
    return stack.path, len(stack.blocks)


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


def _top(kind: str, value: PresetValue, stack: Stack, levels: dict[nn.Parameter, int]) -> set[nn.Parameter]:
    """Parameters of the last blocks of the stack, of what follows it, and of the head."""
    count = _block_count(kind, value, stack)
    return {parameter for parameter, level in levels.items() if level <= count}


def _part(part: int, parts: int, stack: Stack, levels: dict[nn.Parameter, int]) -> set[nn.Parameter]:
    blocks = len(stack.blocks)
    if parts > blocks:
        raise ValueError(
            f"'part:{part}/{parts}' asks for {parts} parts of the {blocks} blocks of {stack.path!r}; "
            f"use at most {blocks}"
        )
    # Where the parts cannot be equal the lower ones are larger, which makes more steps cheap.
    above = blocks * (part - 1) // parts if part > 1 else -1
    lowest = blocks + 1 if part == parts else blocks * part // parts
    return {parameter for parameter, level in levels.items() if above < level <= lowest}


def _head(model: nn.Module) -> set[nn.Parameter] | None:
    """Parameters outside the base model; None without a base model."""
    wrapped = unwrap(model)
    base = getattr(wrapped, "base_model", None)
    return set(wrapped.parameters()) - set(base.parameters()) if isinstance(base, nn.Module) else None


def _why_no_head(model: nn.Module) -> str:
    wrapped = unwrap(model)
    kind = type(wrapped).__name__
    if _head(model) is None:
        return f"{kind} has no base_model, so no head is marked off; use 'last:1' or a regular expression"
    base: Any = wrapped.base_model
    if base is wrapped:
        return f"{kind} is its own base model, so nothing is outside it; use 'last:1'"
    inside = {name for name, module in wrapped.named_modules(remove_duplicate=False) if module is base}
    prefixes = tuple(f"{name}." for name in inside)
    for names in _places(wrapped).values():
        outer = [name for name in names if not name.startswith(prefixes)]
        if outer:
            within = next(name for name in names if name not in outer)
            return f"the head of {kind} is tied: {outer[0]!r} is {within!r} of its base model; use 'last:1'"
    return f"{kind} has no parameters outside its base model; use 'last:1'"


def _places(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every name of every parameter: more than one where weights are tied."""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    return places
