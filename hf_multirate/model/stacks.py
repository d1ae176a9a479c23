"""The stack of a model: the container whose blocks run one after the other and hold most trainable parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from transformers import PreTrainedModel

from hf_multirate.model.unwrap import canonical_name


MATRIX = 2

INTERLEAVED = r"norm|embed|attention|attn|ffn|mlp|sample"
"""In names of lists that share the numbers of the blocks: SegFormer has norms so, XLM all parts of a layer."""

PARALLEL = r"expert|(^|_)(heads|classifiers|regressors|scorers|readouts)$"
"""In names of lists whose modules stand side by side."""

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
    for flat in (False, True):
        inside = inside or [s for s in _stacks(model, trained=False, flat=flat) if _is_inside(s.path, prefix)]
    return inside


def place_of(model: nn.Module, place: str) -> str:
    """Full name of the module that ``place`` names, which may be the end of that name.

    Raises:
        ValueError: there is no such module, or several.
    """
    paths: dict[str, str] = {
        canonical_name(f"{path}.")[:-1]: path for path, _ in model.named_modules(remove_duplicate=False) if path
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


def _stacks(model: nn.Module, *, trained: bool, flat: bool = False) -> list[Stack]:
    """Containers that are a stack; with ``flat`` also sequences of layers and norms, else parts of a block."""
    found: dict[nn.Module, Stack] = {}
    modules = list(model.named_modules())
    parallel = [] if flat else [module for path, module in modules if _is_parallel(path, module)]
    beside = {part for module in parallel for part in module.modules()}
    for path, module in reversed(modules):  # those inside before those around them
        if module not in beside and _is_chain(module):
            stack = _as_stack(path, module, found, trained=trained, flat=flat)
            if stack is not None:
                found[module] = stack
    return list(reversed(found.values()))


def _is_parallel(path: str, module: nn.Module) -> bool:
    """Whether the children of a list stand side by side."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    return bool(re.search(PARALLEL, path.rpartition(".")[2].lower())) or _are_heads(module)


def _is_chain(module: nn.Module) -> bool:
    """Whether the children of ``module`` may run one after the other: of a dictionary those with like names."""
    if isinstance(module, nn.ModuleDict):
        names = [re.fullmatch(r"(.*?)(\d+)", name) for name, _ in module.named_children()]
        return None not in names and len({name[1] for name in names if name}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _are_heads(module: nn.Module) -> bool:
    """Whether no module takes what the one before it returns, as far as linear layers show their sizes."""
    ends = [_ends(child) for child in module.children()]
    known = [pair for pair in ends if pair is not None]
    return len(known) == len(ends) > 1 and all(
        out.out_features != into.in_features for (_, out), (into, _) in pairwise(known)
    )


def _ends(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """The first and the last linear layer of a module that is one, or a sequence with some."""
    parts = [module] if isinstance(module, nn.Linear) else list(module) if isinstance(module, nn.Sequential) else []
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    return (linear[0], linear[-1]) if linear else None


def _as_stack(
    path: str, module: nn.Module, inner: Mapping[nn.Module, Stack], *, trained: bool, flat: bool
) -> Stack | None:
    # named_children() lists a shared block once: one block applied twelve times is no stack.
    owning = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    # A norm between layers belongs to the layer below it, unless there is nothing else.
    large = {name: child for name, child in owning.items() if any(p.dim() >= MATRIX for p in child.parameters())}
    blocks = large or owning
    if len(blocks) <= 1 or (isinstance(module, nn.Sequential) and not flat and _are_layers(owning)):
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
