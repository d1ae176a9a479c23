"""The stack of a model: the container whose blocks run one after the other and hold most trainable parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hf_multirate.names import canonical


MATRIX = 2

INTERLEAVED = r"norm|embed|attention|attn|ffn|mlp|sample"
"""In names of lists that share the numbers of the blocks: SegFormer has norms so, XLM all parts of a layer."""

LATER = r"(^|_)(decoder|language_model|llm|lm|generator)(_|$)"
"""In names of towers that run after another tower, rather than beside it."""

CLOSE = 0.5
"""Share of the largest stack from which on another stack is of comparable size."""


@dataclass(frozen=True)
class Stack:
    """A container of blocks.

    Attributes:
        path: Its name in the model.
        module: The container.
        blocks: Names of the blocks in order. Blocks without a trainable parameter are left out if any block has one.
        size: Number of trainable parameters in the blocks, or of all parameters if nothing in the model is trainable.
    """

    path: str
    module: nn.Module
    blocks: tuple[str, ...]
    size: int


def find_stack(model: nn.Module, place: str | None = None) -> Stack:
    """The stack with the most trainable parameters.

    Of stacks of comparable size that of a decoder or language model goes before others, and of equally large ones the
    last registered. Blocks may be of several classes. A container of whole models or a pipeline with one large part is
    no stack, but what it contains may be.

    Args:
        model: The model.
        place: Name of a module in which the stack is looked for, or the end of that name; None is all of the model.

    Raises:
        ValueError: there is none, or ``place`` names no module or several.
    """
    found = stacks_of(model, place)
    if not found:
        inside = f"{type(model).__name__}" if place is None else f"{place!r} of {type(model).__name__}"
        raise ValueError(
            f"{inside} has no stack: no ModuleList or Sequential of two or more modules with parameters; "
            "name the fast parameters with a regular expression instead"
        )
    largest = max(reversed(found), key=lambda stack: stack.size)
    inner = set(largest.module.modules())
    later = [
        stack
        for stack in found
        if stack.size >= CLOSE * largest.size and stack.module not in inner and _is_later(stack.path, largest.path)
        if largest.module not in set(stack.module.modules())
    ]
    return max(reversed(later), key=lambda stack: stack.size) if later else largest


def _is_later(one: str, other: str) -> bool:
    """Whether a stack is in a tower that runs after that of the ``other``, as far as names show."""
    names, others = one.split("."), other.split(".")
    own = next((pair for pair in zip(names, others, strict=False) if pair[0] != pair[1]), None)
    return own is not None and bool(re.search(LATER, own[0])) and not re.search(LATER, own[1])


def rivals(model: nn.Module, stack: Stack) -> list[Stack]:
    """Other stacks of comparable size that belong to another tower: neither in ``stack``, nor around or beside it."""
    inner = set(stack.module.modules())
    parent = model.get_submodule(stack.path.rpartition(".")[0])
    inner.update(parent.get_submodule(name) for name in interleaved(parent, stack.module))
    found = [
        other
        for other in stacks_of(model)
        if other.size and other.size >= CLOSE * stack.size
        if other.module not in inner and stack.module not in set(other.module.modules())
    ]
    return [stack for stack in found if not any(stack.path.startswith(f"{other.path}.") for other in found)]


def interleaved(parent: nn.Module, stack: nn.Module) -> list[str]:
    """Names of lists in ``parent`` of which each module runs next to the block of its number, as norms may do."""
    number = len(list(stack.children()))
    return [
        name
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and child is not stack and len(child) == number > 1
        if re.search(INTERLEAVED, name.lower())
    ]


def stacks_of(model: nn.Module, place: str | None = None) -> list[Stack]:
    """All stacks in order of registration: those with trainable parameters, or all if there is no such stack."""
    prefix = None if place is None else place_of(model, place)
    trained = _stacks(model, trained=True)
    inside = [stack for stack in trained if stack.size and _is_inside(stack.path, prefix)]
    return inside or [stack for stack in _stacks(model, trained=False) if _is_inside(stack.path, prefix)]


def place_of(model: nn.Module, place: str) -> str:
    """Full name of the module that ``place`` names, which may be the end of that name.

    Raises:
        ValueError: there is no such module, or several.
    """
    paths: dict[str, str] = {
        canonical(f"{path}.")[:-1]: path for path, _ in model.named_modules(remove_duplicate=False) if path
    }
    if place in paths:
        return paths[place]
    ends = [path for known, path in paths.items() if known.endswith(f".{place}")]
    outer = [path for path in ends if not any(path.startswith(f"{other}.") for other in ends)]
    if len(outer) == 1:
        return outer[0]
    if outer:
        raise ValueError(f"'@{place}' names {len(outer)} modules, {outer[:3]}: give more of the name of one of them")
    close = difflib.get_close_matches(place, paths, n=3, cutoff=0.0)
    raise ValueError(f"'@{place}' names no module of {type(model).__name__}; closest: {close}")


def containers(model: nn.Module) -> set[nn.Module]:
    """The modules of all stacks, with trainable parameters or not."""
    return {stack.module for stack in _stacks(model, trained=False)}


def _is_inside(path: str, prefix: str | None) -> bool:
    return prefix is None or path == prefix or path.startswith(f"{prefix}.")


def _stacks(model: nn.Module, *, trained: bool) -> list[Stack]:
    found: dict[nn.Module, Stack] = {}
    for path, module in reversed(list(model.named_modules())):  # those inside before those around them
        # Experts stand side by side.
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and "expert" not in path.rpartition(".")[2]:
            stack = _as_stack(path, module, found, trained=trained)
            if stack is not None:
                found[module] = stack
    return list(reversed(found.values()))


def _as_stack(path: str, module: nn.Module, inner: Mapping[nn.Module, Stack], *, trained: bool) -> Stack | None:
    # named_children() lists a shared block once: one block applied twelve times is no stack.
    owning = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    # A norm between layers belongs to the layer below it, unless there is nothing else.
    large = {name: child for name, child in owning.items() if any(p.dim() >= MATRIX for p in child.parameters())}
    blocks = large or owning
    if len(blocks) <= 1 or (isinstance(module, nn.Sequential) and _are_layers(owning)):
        return None
    sizes = {
        name: sum(p.numel() for p in child.parameters() if p.requires_grad or not trained)
        for name, child in blocks.items()
    }
    if _holds_models(module, blocks, sizes, inner):
        return None
    names = tuple(name for name, size in sizes.items() if size) or tuple(sizes)
    return Stack(path, module, names, sum(sizes.values()))


def _are_layers(blocks: Mapping[str, nn.Module]) -> bool:
    """Whether these are layers of several classes without modules of their own, the parts of one block."""
    classes = {type(block) for block in blocks.values()}
    return len(classes) > 1 and not any(list(block.children()) for block in blocks.values())


def _holds_models(
    module: nn.Module, blocks: Mapping[str, nn.Module], sizes: Mapping[str, int], inner: Mapping[nn.Module, Stack]
) -> bool:
    """Whether ``module`` is a list of models, or a pipeline of which one part has most parameters and is a stack."""
    deep = {name for name, block in blocks.items() if any(part in inner for part in block.modules())}
    models = {name for name in deep if _is_model(blocks[name], inner)}
    if models == set(blocks):
        return True
    largest = max(sizes, key=lambda name: sizes[name])
    if 2 * sizes[largest] < sum(sizes.values()) or largest not in deep:
        return False
    like = len({type(block) for block in blocks.values()}) == 1
    return largest in models or (not like and isinstance(module, nn.Sequential))


def _is_model(block: nn.Module, inner: Mapping[nn.Module, Stack]) -> bool:
    """Whether there is a transformers model in ``block``, or an embedding beside a stack."""
    parts = list(block.modules())
    # T5 keeps its table of relative positions inside of a block, where it is no input.
    stacked = {part for outer in parts if outer in inner for part in outer.modules()}
    return any(
        isinstance(part, PreTrainedModel) or (isinstance(part, nn.Embedding) and part not in stacked) for part in parts
    )


def parents_of(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Module -> the modules that it is a child of, with its name there: more than one if it is shared."""
    parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {model: []}
    for parent in model.modules():
        for name, child in parent.named_children():
            parents.setdefault(child, []).append((parent, name))
    return parents


def ancestors(module: nn.Module, parents: Mapping[nn.Module, Sequence[tuple[nn.Module, str]]]) -> Iterator[nn.Module]:
    """Every module that contains ``module``, whichever way."""
    seen: set[nn.Module] = set()
    todo = [module]
    while todo:
        for parent, _ in parents[todo.pop()]:
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
                yield parent
