"""Keep the saving of fast-only steps under activation checkpointing of transformers models.

So that something below a checkpoint requires a gradient, transformers and PEFT mark the output of the input
embeddings, and backward would run down to it. Checkpoints with ``use_reentrant=True`` return no gradient at all
unless an input of theirs requires one, so without the mark the live part would learn nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


FUNCTION = "_gradient_checkpointing_func"
"""Where transformers keeps what a module calls to recompute its activations."""


@contextmanager
def without_reentrance(model: nn.Module, modules: Sequence[nn.Module], *, hooked: bool = True) -> Iterator[None]:
    """Have ``modules`` recompute with ``use_reentrant=False``, which gives the same gradients with no mark needed.

    Args:
        model: The model that they are in.
        modules: What `checkpointing_modules` has found.
        hooked: Whether to look again before each forward pass of ``model``: trainers that sample texts within a step
            (GRPO) take checkpointing off for that and put it on again.
    """
    changed: dict[nn.Module, tuple[Any, Any]] = {}

    def switch(*_: Any) -> None:
        for module in reentrant(modules):
            before = vars(module)[FUNCTION]
            keywords = {**before.keywords, "use_reentrant": False}
            vars(module)[FUNCTION] = functools.partial(before.func, *before.args, **keywords)
            changed[module] = (before, vars(module)[FUNCTION])

    switch()
    handle = model.register_forward_pre_hook(switch) if hooked and modules else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        for module, (before, ours) in changed.items():
            if vars(module)[FUNCTION] is ours:
                vars(module)[FUNCTION] = before


def checkpointing_modules(model: nn.Module) -> list[nn.Module]:
    """Modules of transformers models that can recompute their activations."""
    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) or "gradient_checkpointing" in vars(module)
    ]


def reentrant(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those of ``modules`` that recompute their activations with ``use_reentrant=True``."""
    functions = ((module, vars(module).get(FUNCTION)) for module in modules)
    return [
        module
        for module, function in functions
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant")
    ]


def markable(model: nn.Module, idle: Iterable[nn.Module]) -> list[nn.Module]:
    """Embeddings within ``idle`` modules, of tokens or of what the transformers models in ``model`` take instead."""
    parts = {part for module in idle for part in module.modules()}
    inputs = {_input_embeddings(module) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return [part for part in model.modules() if part in parts and (isinstance(part, nn.Embedding) or part in inputs)]


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found


def cut_mark(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that detaches an output which requires a gradient only because somebody marked it.

    Activation checkpointing in transformers registers a hook that marks the output of the input embeddings,
    ``enable_input_require_grads``; another hook may have added noise to it since (NEFTune). With everything below
    the boundary idle the mark has no use, and backward would run down to it. An output that a parameter has a part
    in is left alone: somebody upstream is live.
    """
    del module, args
    if not isinstance(output, torch.Tensor) or not output.requires_grad:
        return output
    # A graph that is being compiled cannot be looked at. A parameter that loses its gradient there is missed later.
    return output.detach() if torch.compiler.is_compiling() or not _depends_on_parameter(output) else output


def _depends_on_parameter(output: torch.Tensor) -> bool:
    """Whether backward from ``output`` would reach a parameter."""
    nodes = [output.grad_fn] if output.grad_fn is not None else []
    for node in nodes:  # grows while it is walked
        nodes += [above for above, _ in node.next_functions if above is not None and above not in nodes]
    leaves: list[Any] = [node for node in nodes if not node.next_functions]
    return any(leaf.name().endswith("AccumulateGrad") and isinstance(leaf.variable, nn.Parameter) for leaf in leaves)
