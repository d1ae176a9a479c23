"""Depth of each module, derived from module names and the order of registration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_multirate.model.never import is_trainable
from hf_multirate.model.stacks import (
    COMPARABLE_SIZE,
    LATER_TOWERS,
    Stack,
    ancestors,
    containers,
    interleaved,
    parents_of,
)


MODULES_ABOVE = r"(^|_)(\w*head|heads|classifiers?|score|scorer|logits?|qa_outputs|predict\w*|decoder|final)(_|$)"
"""Pattern for names of modules that run after a stack even if they are registered before it."""

INPUT_PROJECTIONS = r"(visual|vision|image|audio|speech|multi_?modal|mm)_.*(proj|connector|adapter|resampler)"
"""Pattern for names of modules that project another modality into the stack, wherever they are registered."""

Edge = tuple[nn.Module, str]
"""A module and the name of one of its children."""


def levels_of(model: nn.Module, stack: Stack) -> dict[nn.Module, int]:
    """Level of each module of ``model``, i.e. its depth from the top.

    The level is 0 above the stack, 1 in its last block, 2 in the block below, and so on. Below the stack it is the
    number of blocks plus one. A shared module has the deepest of its levels.
    """
    parents = parents_of(model)
    edge_levels = _edge_levels(model, stack, parents)
    levels = {model: len(stack.blocks) + 1}

    def level(module: nn.Module) -> int:
        if module not in levels:
            levels[module] = max(edge_levels[e] if e in edge_levels else level(e[0]) for e in parents[module])
        return levels[module]

    module_levels = {module: level(module) for module in model.modules()}
    base = base_of(model)
    head = set() if base is None else set(unwrap_peft(model).modules()) - set(base.modules())
    # If the head contains the stack (a decoder on a base model), not all modules of the head are above it.
    return module_levels if stack.module in head else module_levels | dict.fromkeys(head & module_levels.keys(), 0)


def base_of(model: nn.Module) -> nn.Module | None:
    """Base model of a transformers model, also of one in a `PeftModel`; None if the model has none."""
    # `base_model` is a property of transformers models; other modules have no such attribute.
    base = getattr(unwrap_peft(model), "base_model", None)
    return base if isinstance(base, nn.Module) else None


def unwrap_peft(model: nn.Module) -> nn.Module:
    """The model in a `PeftModel`, whose ``base_model`` is the tuner and includes the head."""
    # Looked up by name because peft is an optional dependency.
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def _edge_levels(model: nn.Module, stack: Stack, parents: Mapping[nn.Module, Sequence[Edge]]) -> dict[Edge, int]:
    """Levels of the blocks, and of the children of all modules that contain the stack."""
    number = len(stack.blocks)
    edge_levels = _block_levels(stack)
    path, stacks = {stack.module, *ancestors(stack.module, parents)}, containers(model)
    for parent in path - {stack.module}:
        siblings = _siblings_above(parent, path, stacks, stack.size)
        edge_levels |= {(parent, name): 0 if above else number + 1 for name, above in siblings.items()}
    for parent, _ in parents[stack.module]:
        block_levels = [edge_levels[stack.module, name] for name, _ in stack.module.named_children()]
        names = [name for name, _ in parent.named_children()]
        stack_name = next(name for name, child in parent.named_children() if child is stack.module)
        for name in interleaved(parent, stack.module):
            modules = parent.get_submodule(name)
            # Modules registered before the stack run before the block with their number.
            after = names.index(name) > names.index(stack_name)
            levels = block_levels if after else [number + 1, *block_levels]
            pairs = zip(modules.named_children(), levels, strict=False)
            edge_levels |= {(modules, key): level for (key, _), level in pairs}
    return edge_levels


def _block_levels(stack: Stack) -> dict[Edge, int]:
    levels: dict[Edge, int] = {}
    level = len(stack.blocks) + 1
    for name, _ in stack.module.named_children():
        if name in stack.blocks:
            level = len(stack.blocks) - stack.blocks.index(name)
        levels[stack.module, name] = level
    return levels


def _siblings_above(parent: nn.Module, path: set[nn.Module], stacks: set[nn.Module], size: int) -> dict[str, bool]:
    """Whether each child of ``parent`` that is not on the ``path`` to the stack runs above the stack, by name."""
    children = list(parent.named_children())
    first = next(i for i, (_, child) in enumerate(children) if child in path)
    above: dict[str, bool] = {}
    after_embedding = False
    for i, (name, child) in enumerate(children):
        if child in path:
            continue
        is_input = _is_input(name, child)
        if i < first:
            above[name] = bool(re.search(MODULES_ABOVE, name.lower())) and not is_input
        elif _runs_later(name, children[first][0]):
            above[name] = not after_embedding
        elif any(part in stacks for part in child.modules()):
            # Another tower does not end the modules above: CLIP's projections are registered after the other tower.
            above[name] = not (after_embedding or is_input or _is_large(child, size))
        else:
            # An embedding is an input of the stack, and so are the modules registered after it
            # (DeBERTa's rel_embeddings, LayerNorm, conv).
            after_embedding = after_embedding or any(isinstance(part, nn.Embedding) for part in child.modules())
            projects = _is_input_projection(name, [name for name, _ in children], children[first][0])
            above[name] = not (after_embedding or is_input or projects)
    return above


def _is_input_projection(name: str, siblings: Sequence[str], stack: str) -> bool:
    """Whether a module projects another modality into the stack; CLIP's two projections are outputs of its towers."""
    has_text_projection = any("text" in sibling and "proj" in sibling for sibling in siblings)
    is_projection = bool(re.search(INPUT_PROJECTIONS, name.lower()))
    return is_projection and not has_text_projection and not re.search(r"visi|visual|image|audio", stack.lower())


def _runs_later(name: str, other: str) -> bool:
    """Whether a tower runs after the tower ``other``, rather than in parallel with it."""
    numbered = name != other and re.sub(r"\d+$", "", name) == re.sub(r"\d+$", "", other)
    return numbered or bool(re.search(LATER_TOWERS, name.lower()))


def _is_large(tower: nn.Module, size: int) -> bool:
    return sum(p.numel() for p in tower.parameters() if is_trainable(p)) >= COMPARABLE_SIZE * size


def _is_input(name: str, module: nn.Module) -> bool:
    # Names count too: BART registers layernorm_embedding after the layers it feeds, and ViT's position_embeddings are
    # a bare parameter. Only names of parameters count: every LoRA layer has an empty child lora_embedding_A.
    named_embedding = any("embed" in f"{name}.{inner}".lower() for inner, _ in module.named_parameters())
    return named_embedding or any(isinstance(inner, nn.Embedding) for inner in module.modules())
