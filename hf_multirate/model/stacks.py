"""Detection of the stack of a model: the container of consecutive blocks with the most trainable parameters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from transformers import PreTrainedModel

from hf_multirate.model.never import is_trainable
from hf_multirate.model.unwrap import canonical_name


MATRIX_DIM = 2

INTERLEAVED_LISTS = r"norm|embed|attention|attn|ffn|mlp|sample"
"""Pattern for names of lists with one module per block, such as the norms of SegFormer or the layer parts of XLM."""

PARALLEL_LISTS = r"expert|(^|_)(heads|classifiers|regressors|scorers|readouts)$"
"""Pattern for names of lists whose modules run in parallel."""

LATER_TOWERS = r"(^|_)(decoder|language_model|llm|lm|generator)(_|$)"
"""Pattern for names of towers that run after another tower, rather than in parallel with it."""

COMPARABLE_SIZE = 0.5
"""A stack is of comparable size if it has at least this share of the parameters of the largest stack."""


@dataclass(frozen=True)
class Stack:
    """Container of consecutive blocks.

    Attributes:
        path: Name of the container in the model.
        module: The container.
        blocks: Names of the blocks in order. Frozen blocks are left out, unless all blocks are frozen.
        size: Number of trainable parameters in the blocks, or of all parameters if the whole model is frozen.
    """

    path: str
    module: nn.Module
    blocks: tuple[str, ...]
    size: int


def find_stack(model: nn.Module, place: str | None = None) -> Stack:
    """Find the stack with the most trainable parameters.

    Among stacks of comparable size, the stack of a decoder or language model is preferred. Among stacks of equal size,
    the last registered one is. Blocks may have different classes. A container of whole models, or a pipeline with one
    large part, is not a stack, but its members may be.

    Args:
        model: The model.
        place: Name of the module that contains the stack, or the end of that name; None for the whole model.

    Raises:
        ValueError: the model has no stack, or ``place`` matches no module or several.
    """
    stacks = stacks_of(model, place)
    if not stacks:
        inside = f"{type(model).__name__}" if place is None else f"{place!r} of {type(model).__name__}"
        raise ValueError(
            f"{inside} has no stack: no ModuleList or Sequential of two or more modules with parameters; "
            "name the fast parameters with a regular expression instead"
        )
    return _preferred(stacks)


def find_whole_stack(model: nn.Module) -> Stack:
    """As `find_stack`, with frozen blocks, and whatever is frozen.

    Raises:
        ValueError: the model has no stack.
    """
    stacks = _find_stacks(model, trained=False) or _find_stacks(model, trained=False, flat=True)
    return _preferred(stacks) if stacks else find_stack(model)


def _preferred(stacks: Sequence[Stack]) -> Stack:
    """The largest stack; among those of comparable size, the stack of a decoder or language model."""
    largest = max(reversed(stacks), key=lambda stack: stack.size)
    inner = set(largest.module.modules())
    later = [
        stack
        for stack in stacks
        if stack.size >= COMPARABLE_SIZE * largest.size
        if stack.module not in inner and _is_later(stack.path, largest.path)
        if largest.module not in set(stack.module.modules())
    ]
    return max(reversed(later), key=lambda stack: stack.size) if later else largest


def _is_later(path: str, other_path: str) -> bool:
    """Whether, according to its name, a stack is in a tower that runs after the tower of another stack."""
    pairs = zip(path.split("."), other_path.split("."), strict=False)
    towers = next((pair for pair in pairs if pair[0] != pair[1]), None)
    return towers is not None and bool(re.search(LATER_TOWERS, towers[0])) and not re.search(LATER_TOWERS, towers[1])


def comparable_stacks(model: nn.Module, stack: Stack) -> list[Stack]:
    """Stacks of comparable size in other towers: neither in ``stack``, nor around it, nor interleaved with it."""
    inner = set(stack.module.modules())
    parent = model.get_submodule(stack.path.rpartition(".")[0])
    inner.update(parent.get_submodule(name) for name in interleaved(parent, stack.module))
    others = [
        other
        for other in stacks_of(model)
        if other.size and other.size >= COMPARABLE_SIZE * stack.size
        if other.module not in inner and stack.module not in set(other.module.modules())
    ]
    return [stack for stack in others if not any(stack.path.startswith(f"{other.path}.") for other in others)]


def interleaved(parent: nn.Module, stack: nn.Module) -> list[str]:
    """Names of lists in ``parent`` with one module per block, which runs next to it; norms are an example."""
    number = len(list(stack.children()))
    return [
        name
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and child is not stack and len(child) == number > 1
        if re.search(INTERLEAVED_LISTS, name.lower())
    ]


def stacks_of(model: nn.Module, place: str | None = None) -> list[Stack]:
    """Stacks with trainable parameters in order of registration; all stacks if there is none."""
    prefix = None if place is None else place_of(model, place)
    stacks = [s for s in _find_stacks(model, trained=True) if s.size and _is_inside(s.path, prefix)]
    for flat in (False, True):
        stacks = stacks or [s for s in _find_stacks(model, trained=False, flat=flat) if _is_inside(s.path, prefix)]
    return stacks


def place_of(model: nn.Module, place: str) -> str:
    """Full name of the module with the name ``place``, or with a name that ends with it.

    Raises:
        ValueError: no module matches, or several.
    """
    paths: dict[str, str] = {
        canonical_name(f"{path}.")[:-1]: path for path, _ in model.named_modules(remove_duplicate=False) if path
    }
    if place in paths:
        return paths[place]
    matches = [path for name, path in paths.items() if name.endswith(f".{place}")]
    outer = [path for path in matches if not any(path.startswith(f"{other}.") for other in matches)]
    if len(outer) == 1:
        return outer[0]
    if outer:
        raise ValueError(f"'@{place}' names {len(outer)} modules, {outer[:3]}: give a longer part of the name")
    closest = difflib.get_close_matches(place, paths, n=3, cutoff=0.0)
    raise ValueError(f"'@{place}' names no module of {type(model).__name__}; closest: {closest}")


def containers(model: nn.Module) -> set[nn.Module]:
    """Containers of all stacks, including frozen ones."""
    return {stack.module for stack in _find_stacks(model, trained=False)}


def _is_inside(path: str, prefix: str | None) -> bool:
    return prefix is None or path == prefix or path.startswith(f"{prefix}.")


def _find_stacks(model: nn.Module, *, trained: bool, flat: bool = False) -> list[Stack]:
    """All stacks; with ``flat`` including sequences of single layers, which usually are parts of a block."""
    stacks: dict[nn.Module, Stack] = {}
    modules = list(model.named_modules())
    parallel_lists = [] if flat else [module for path, module in modules if _is_parallel(path, module)]
    parallel = {part for module in parallel_lists for part in module.modules()}
    for path, module in reversed(modules):  # inner modules before those that contain them
        if module not in parallel and _is_chain(module):
            stack = _as_stack(path, module, stacks, trained=trained, flat=flat)
            if stack is not None:
                stacks[module] = stack
    return list(reversed(stacks.values()))


def _is_parallel(path: str, module: nn.Module) -> bool:
    """Whether the children of a list run in parallel."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    return bool(re.search(PARALLEL_LISTS, path.rpartition(".")[2].lower())) or _are_heads(module)


def _is_chain(module: nn.Module) -> bool:
    """Whether the children of ``module`` may run one after the other; a dictionary needs numbered names."""
    if isinstance(module, nn.ModuleDict):
        names = [re.fullmatch(r"(.*?)(\d+)", name) for name, _ in module.named_children()]
        return None not in names and len({name[1] for name in names if name}) == 1
    return isinstance(module, (nn.ModuleList, nn.Sequential))


def _are_heads(module: nn.Module) -> bool:
    """Whether the output size of each child differs from the input size of the next, so that they are no chain."""
    ends = [_first_and_last_linear(child) for child in module.children()]
    linear = [pair for pair in ends if pair is not None]
    return len(linear) == len(ends) > 1 and all(
        last.out_features != first.in_features for (_, last), (first, _) in pairwise(linear)
    )


def _first_and_last_linear(module: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    """First and last linear layer of a linear layer or a sequence; None if there is no linear layer."""
    parts = [module] if isinstance(module, nn.Linear) else list(module) if isinstance(module, nn.Sequential) else []
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    return (linear[0], linear[-1]) if linear else None


def _as_stack(
    path: str, module: nn.Module, inner: Mapping[nn.Module, Stack], *, trained: bool, flat: bool
) -> Stack | None:
    # named_children() lists a shared block once: a block that is applied twelve times is not a stack.
    children = {name: child for name, child in module.named_children() if any(True for _ in child.parameters())}
    # A norm between layers belongs to the layer below it, unless all children are norms.
    large = {n: child for n, child in children.items() if any(p.dim() >= MATRIX_DIM for p in child.parameters())}
    blocks = large or children
    if len(blocks) <= 1 or (isinstance(module, nn.Sequential) and not flat and _are_layers(children)):
        return None
    sizes = {
        name: sum(p.numel() for p in child.parameters() if is_trainable(p) or not trained)
        for name, child in blocks.items()
    }
    if _holds_models(module, blocks, sizes, inner):
        return None
    names = tuple(name for name, size in sizes.items() if size) or tuple(sizes)
    return Stack(path, module, names, sum(sizes.values()))


def _are_layers(blocks: Mapping[str, nn.Module]) -> bool:
    """Whether these are single layers of several classes, i.e. the parts of one block."""
    classes = {type(block) for block in blocks.values()}
    return len(classes) > 1 and not any(list(block.children()) for block in blocks.values())


def _holds_models(
    module: nn.Module, blocks: Mapping[str, nn.Module], sizes: Mapping[str, int], inner: Mapping[nn.Module, Stack]
) -> bool:
    """Whether ``module`` is a list of models, or a pipeline whose largest part has most parameters and a stack."""
    deep = {name for name, block in blocks.items() if any(part in inner for part in block.modules())}
    models = {name for name in deep if _is_model(blocks[name], inner)}
    if models == set(blocks):
        return True
    largest = max(sizes, key=lambda name: sizes[name])
    if 2 * sizes[largest] < sum(sizes.values()) or largest not in deep:
        return False
    same_class = len({type(block) for block in blocks.values()}) == 1
    return largest in models or (not same_class and isinstance(module, nn.Sequential))


def _is_model(block: nn.Module, inner: Mapping[nn.Module, Stack]) -> bool:
    """Whether ``block`` contains a transformers model, or an embedding outside of its stacks."""
    parts = list(block.modules())
    # An embedding in a stack is not an input: T5 has its table of relative positions in a block.
    stacked = {part for outer in parts if outer in inner for part in outer.modules()}
    return any(
        isinstance(part, PreTrainedModel) or (isinstance(part, nn.Embedding) and part not in stacked) for part in parts
    )


def parents_of(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Parents of each module with its name in them; a shared module has several."""
    parents: dict[nn.Module, list[tuple[nn.Module, str]]] = {model: []}
    for parent in model.modules():
        for name, child in parent.named_children():
            parents.setdefault(child, []).append((parent, name))
    return parents


def ancestors(module: nn.Module, parents: Mapping[nn.Module, Sequence[tuple[nn.Module, str]]]) -> Iterator[nn.Module]:
    """All modules that contain ``module``, directly or indirectly."""
    seen: set[nn.Module] = set()
    todo = [module]
    while todo:
        for parent, _ in parents[todo.pop()]:
            if parent not in seen:
                seen.add(parent)
                todo.append(parent)
                yield parent
