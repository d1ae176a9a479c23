"""How deep each module lies, as far as names and the order of registration show."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_multirate.model.stacks import CLOSE, LATER, Stack, ancestors, containers, interleaved, parents_of


ABOVE = r"(^|_)(\w*head|heads|classifiers?|score|scorer|logits?|qa_outputs|predict\w*|decoder|final)(_|$)"
"""In names of modules that run after a stack although they were registered before it."""

FEEDS = r"(visual|vision|image|audio|speech|multi_?modal|mm)_.*(proj|connector|adapter|resampler)"
"""In names of modules that take another modality into the stack, wherever they were registered."""

Edge = tuple[nn.Module, str]
"""A module and the name of one of its children."""


def levels_of(model: nn.Module, stack: Stack) -> dict[nn.Module, int]:
    """How deep each module of ``model`` lies.

    Levels are 0 above the stack, 1 in its last block, 2 in the one below that, and the number of blocks plus one below
    the stack. A module that several others share has the deepest of its levels.
    """
    parents = parents_of(model)
    marks = _marks(model, stack, parents)
    levels = {model: len(stack.blocks) + 1}

    def level(module: nn.Module) -> int:
        if module not in levels:
            levels[module] = max(marks[edge] if edge in marks else level(edge[0]) for edge in parents[module])
        return levels[module]

    found = {module: level(module) for module in model.modules()}
    head = head_modules(model) or set()
    # With the stack in the head (a decoder on a base model) not all of the head is above it.
    return found if stack.module in head else found | dict.fromkeys(head & found.keys(), 0)


def head_modules(model: nn.Module) -> set[nn.Module] | None:
    """Modules outside the base model; None without a base model."""
    wrapped = unwrap(model)
    base = getattr(wrapped, "base_model", None)
    return set(wrapped.modules()) - set(base.modules()) if isinstance(base, nn.Module) else None


def unwrap(model: nn.Module) -> nn.Module:
    """The model in a `PeftModel`, whose own ``base_model`` is its tuner, which contains the head."""
    # Probed by name because peft is an optional dependency.
    inner: Any = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def _marks(model: nn.Module, stack: Stack, parents: Mapping[nn.Module, Sequence[Edge]]) -> dict[Edge, int]:
    """Levels of the blocks, and of the children of all modules that contain the stack."""
    number = len(stack.blocks)
    marks = _blocks(stack)
    path, stacks = {stack.module, *ancestors(stack.module, parents)}, containers(model)
    for parent in path - {stack.module}:
        placed = _siblings(parent, path, stacks, stack.size)
        marks |= {(parent, name): 0 if above else number + 1 for name, above in placed.items()}
    for parent, _ in parents[stack.module]:
        numbered = [marks[stack.module, name] for name, _ in stack.module.named_children()]
        names = [name for name, _ in parent.named_children()]
        own = next(name for name, child in parent.named_children() if child is stack.module)
        for name in interleaved(parent, stack.module):
            beside = parent.get_submodule(name)
            # What was registered before the stack runs before the block of its number.
            levels = numbered if names.index(name) > names.index(own) else [number + 1, *numbered]
            marks |= {(beside, key): level for (key, _), level in zip(beside.named_children(), levels, strict=False)}
    return marks


def _blocks(stack: Stack) -> dict[Edge, int]:
    marks: dict[Edge, int] = {}
    level = len(stack.blocks) + 1
    for name, _ in stack.module.named_children():
        if name in stack.blocks:
            level = len(stack.blocks) - stack.blocks.index(name)
        marks[stack.module, name] = level
    return marks


def _siblings(parent: nn.Module, path: set[nn.Module], stacks: set[nn.Module], size: int) -> dict[str, bool]:
    """Whether children of ``parent`` that are not on the ``path`` to the stack lie above it."""
    children = list(parent.named_children())
    first = next(i for i, (_, child) in enumerate(children) if child in path)
    found: dict[str, bool] = {}
    fed = False
    for i, (name, child) in enumerate(children):
        if child in path:
            continue
        takes = _is_input(name, child)
        if i < first:
            found[name] = bool(re.search(ABOVE, name.lower())) and not takes
        elif _runs_later(name, children[first][0]):
            found[name] = not fed
        elif any(part in stacks for part in child.modules()):
            # A tower is only passed over: CLIP's projections do follow the other tower.
            found[name] = not (fed or takes or _large(child, size))
        else:
            # A bare embedding feeds the bottom of the stack, and what is registered behind it serves it
            # (DeBERTa's rel_embeddings, LayerNorm, conv).
            fed = fed or any(isinstance(part, nn.Embedding) for part in child.modules())
            found[name] = not (fed or takes or _feeds(name, [name for name, _ in children], children[first][0]))
    return found


def _feeds(name: str, siblings: Sequence[str], stack: str) -> bool:
    """Whether a module takes another modality into the stack; CLIP projects both of its towers, which is no input."""
    pair = any("text" in sibling and "proj" in sibling for sibling in siblings)
    return (
        bool(re.search(FEEDS, name.lower())) and not pair and not re.search(r"visi|visual|image|audio", stack.lower())
    )


def _runs_later(name: str, before: str) -> bool:
    """Whether a tower runs after the one that is called ``before``, and not beside it."""
    numbered = name != before and re.sub(r"\d+$", "", name) == re.sub(r"\d+$", "", before)
    return numbered or bool(re.search(LATER, name.lower()))


def _large(tower: nn.Module, size: int) -> bool:
    return sum(p.numel() for p in tower.parameters() if p.requires_grad) >= CLOSE * size


def _is_input(name: str, module: nn.Module) -> bool:
    # The name counts too: BART registers layernorm_embedding after the layers it feeds, ViT's
    # position_embeddings are a bare parameter. Only names that own parameters: every LoRA layer
    # has an empty child called lora_embedding_A.
    canonical_parameters = any("embed" in f"{name}.{inner}".lower() for inner, _ in module.named_parameters())
    return canonical_parameters or any(isinstance(inner, nn.Embedding) for inner in module.modules())
