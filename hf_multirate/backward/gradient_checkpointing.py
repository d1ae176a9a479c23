"""Keep the saving of fast-only steps under activation checkpointing of transformers models.

So that something below a checkpoint requires a gradient, transformers and PEFT mark the output of the input
embeddings, and backward would run down to it. Checkpoints with ``use_reentrant=True`` return no gradient at all
unless an input of theirs requires one, so without the mark the live part would learn nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_multirate.model.hooks import OwnHook, last_hooks, tensors_in


MARKING = "make_inputs_require_grad"
"""How the names of hooks that mark the output of embeddings begin."""

LIBRARIES = ("accelerate", "peft", "sentence_transformers", "torch", "transformers", "trl")
"""Packages of which no forward hook on embeddings adds a tensor that needs a gradient, but for parameters."""

FUNCTION = "_gradient_checkpointing_func"
"""Where transformers keeps what a module calls to recompute its activations."""


class _WithoutReentrance(functools.partial[Any]):
    """A checkpointing function with ``use_reentrant=False``; a copy or a pickle of it is what it was made of."""

    before: functools.partial[Any]

    @classmethod
    def of(cls, before: functools.partial[Any]) -> _WithoutReentrance:
        """That of ``before``."""
        made = cls(before.func, *before.args, **{**before.keywords, "use_reentrant": False})
        made.before = before
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """See `object.__reduce__`."""
        reduced: tuple[Any, ...] = self.before.__reduce__()  # type: ignore[assignment]
        return reduced


@contextmanager
def non_reentrant(model: nn.Module, modules: Sequence[nn.Module], *, hooked: bool = True) -> Iterator[None]:
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
            vars(module)[FUNCTION] = _WithoutReentrance.of(before)
            changed[module] = (before, vars(module)[FUNCTION])

    switch()
    handle = model.register_forward_pre_hook(OwnHook(switch, model)) if hooked and modules else None
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


@contextmanager
def without_marks(model: nn.Module, modules: Sequence[nn.Module], *, renewed: bool = True) -> Iterator[None]:
    """Cut the marks that activation checkpointing puts on outputs of ``modules``: see `detach_marked_input`.

    An output that requires a gradient before any hook has seen it is left alone: a tensor that the module was given,
    or made itself, is to have one.

    Args:
        model: The model that they are in.
        modules: What `markable` has found.
        renewed: See `hf_multirate.model.hooks.last_hooks`.
    """
    wanted: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        del args
        wanted[module] = any(tensor.requires_grad for tensor in tensors_in(output))

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        return output if wanted.get(module) else detach_marked_input(module, args, output)

    handles = [module.register_forward_hook(OwnHook(note, module), prepend=True) for module in modules]
    try:
        with last_hooks(model, [(module, cut) for module in modules], renewed=renewed):
            yield
    finally:
        for handle in handles:
            handle.remove()


def detach_marked_input(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that detaches an output which requires a gradient only because checkpointing has marked it.

    Activation checkpointing in transformers registers a hook that marks the output of the input embeddings,
    ``enable_input_require_grads``; another hook may have added noise to it since (NEFTune). With everything below
    the boundary idle the mark has no use, and backward would run down to it.

    Any other hook may have added a tensor of the user, such as a perturbation to be learnt, or keeps the output for
    its gradient. Then the output is left alone, and so is one that a parameter has a part in: somebody upstream is
    live.
    """
    del args
    if not isinstance(output, torch.Tensor) or not output.requires_grad or not _marked_only(module):
        return output
    # A graph that is being compiled cannot be looked at. A parameter that loses its gradient there is missed later.
    return output.detach() if torch.compiler.is_compiling() or not _depends_on_parameter(output) else output


def _marked_only(module: nn.Module) -> bool:
    """Whether all forward hooks on ``module`` are of libraries that mark outputs, or leave them as they are."""
    return all(isinstance(hook, OwnHook) or _is_known(hook) for hook in module._forward_hooks.values())


def _is_known(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    if not isinstance(hook, (FunctionType, MethodType)):
        return False
    # Scripts have copies of the hook of transformers and PEFT, by its name.
    return hook.__name__.startswith(MARKING) or hook.__module__.partition(".")[0] in LIBRARIES


def _depends_on_parameter(output: torch.Tensor) -> bool:
    """Whether backward from ``output`` would reach a parameter."""
    nodes = [output.grad_fn] if output.grad_fn is not None else []
    for node in nodes:  # grows while it is walked
        nodes += [above for above, _ in node.next_functions if above is not None and above not in nodes]
    leaves: list[Any] = [node for node in nodes if not node.next_functions]
    return any(leaf.name().endswith("AccumulateGrad") and isinstance(leaf.variable, nn.Parameter) for leaf in leaves)


@contextmanager
def inside_functions(model: nn.Module, parameters: Set[nn.Parameter]) -> Iterator[set[nn.Parameter]]:
    """Collect those of ``parameters`` whose module runs inside the forward pass of a function of autograd.

    The set is filled while the context is open.
    """
    found: set[nn.Parameter] = set()

    def note(module: nn.Module, args: Any) -> None:
        del args
        if module in owners and not torch.is_grad_enabled() and _in_function(sys._getframe()):
            found.update(owners[module])

    # Found beforehand: a wrapper that shards puts other tensors in their place for a forward pass.
    own = {part: [p for p in part.parameters(recurse=False) if p in parameters] for part in model.modules()}
    owners = {part: members for part, members in own.items() if members}
    handles = [module.register_forward_pre_hook(OwnHook(note, module)) for module in owners]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _in_function(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        first = code.co_varnames[0] if code.co_name == "forward" and code.co_argcount else ""
        if first and isinstance(frame.f_locals.get(first), FunctionCtx):
            return True
        frame = frame.f_back
    return False
