"""Keep the saving of fast steps with activation checkpointing in transformers models.

transformers and PEFT set ``requires_grad`` on the output of the input embeddings (the *mark*). With the mark, backward
runs down to the embeddings. Without it, checkpoints with ``use_reentrant=True`` return no gradient, because none of
their inputs requires one. At fast steps this module removes the mark and switches checkpoints to
``use_reentrant=False``.
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


MARK_HOOK_PREFIX = "make_inputs_require_grad"
"""Prefix of the names of hooks that mark the output of embeddings."""

TRUSTED_LIBRARIES = ("accelerate", "peft", "sentence_transformers", "torch", "transformers", "trl")
"""Packages whose forward hooks on embeddings add no tensor that needs a gradient, except parameters."""

CHECKPOINT_FUNCTION = "_gradient_checkpointing_func"
"""Attribute of transformers modules with the function that recomputes activations."""


class _NonReentrant(functools.partial[Any]):
    """A checkpointing function with ``use_reentrant=False``; copies and pickles are those of the original function."""

    before: functools.partial[Any]

    @classmethod
    def of(cls, before: functools.partial[Any]) -> _NonReentrant:
        """The non-reentrant version of ``before``."""
        function = cls(before.func, *before.args, **{**before.keywords, "use_reentrant": False})
        function.before = before
        return function

    def __reduce__(self) -> tuple[Any, ...]:
        """See `object.__reduce__`."""
        reduced: tuple[Any, ...] = self.before.__reduce__()  # type: ignore[assignment]
        return reduced


@contextmanager
def non_reentrant(model: nn.Module, modules: Sequence[nn.Module], *, hooked: bool = True) -> Iterator[None]:
    """A context in which ``modules`` recompute with ``use_reentrant=False``: the same gradients without the mark.

    Args:
        model: The model that contains the modules.
        modules: The modules returned by `checkpointing_modules`.
        hooked: Whether to repeat this before each forward pass of ``model``. Trainers that generate text within a step
            (GRPO) switch checkpointing off and on again.
    """
    changed: dict[nn.Module, tuple[Any, Any]] = {}

    def switch(*_: Any) -> None:
        for module in reentrant_modules(modules):
            before = vars(module)[CHECKPOINT_FUNCTION]
            vars(module)[CHECKPOINT_FUNCTION] = _NonReentrant.of(before)
            changed[module] = (before, vars(module)[CHECKPOINT_FUNCTION])

    switch()
    handle = model.register_forward_pre_hook(OwnHook(switch, model)) if hooked and modules else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        for module, (before, replacement) in changed.items():
            if vars(module)[CHECKPOINT_FUNCTION] is replacement:
                vars(module)[CHECKPOINT_FUNCTION] = before


def checkpointing_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of transformers models in ``model`` that can recompute their activations."""
    return [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) or "gradient_checkpointing" in vars(module)
    ]


def reentrant_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules among ``modules`` that recompute their activations with ``use_reentrant=True``."""
    functions = ((module, vars(module).get(CHECKPOINT_FUNCTION)) for module in modules)
    return [
        module
        for module, function in functions
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant")
    ]


def input_embeddings(model: nn.Module, inactive: Iterable[nn.Module]) -> list[nn.Module]:
    """Token embeddings and other input embeddings of transformers models within the ``inactive`` modules."""
    parts = {part for module in inactive for part in module.modules()}
    inputs = {_embeddings_of(module) for module in model.modules() if isinstance(module, PreTrainedModel)}
    return [part for part in model.modules() if part in parts and (isinstance(part, nn.Embedding) or part in inputs)]


def _embeddings_of(model: PreTrainedModel) -> nn.Module | None:
    try:
        embeddings: nn.Module | None = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return embeddings


@contextmanager
def marked_inputs_detached(model: nn.Module, modules: Sequence[nn.Module], *, renewed: bool = True) -> Iterator[None]:
    """A context that detaches the outputs of ``modules`` that checkpointing has marked: see `detach_marked_input`.

    Outputs that require a gradient before any hook runs are not detached. They depend on a tensor that the module
    received or created itself.

    Args:
        model: The model that contains the modules.
        modules: The modules returned by `input_embeddings`.
        renewed: See `hf_multirate.model.hooks.last_hooks`.
    """
    requires_grad_unmarked: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        del args
        requires_grad_unmarked[module] = any(tensor.requires_grad for tensor in tensors_in(output))

    def detach(module: nn.Module, args: Any, output: Any) -> Any:
        return output if requires_grad_unmarked.get(module) else detach_marked_input(module, args, output)

    handles = [module.register_forward_hook(OwnHook(note, module), prepend=True) for module in modules]
    try:
        with last_hooks(model, [(module, detach) for module in modules], renewed=renewed):
            yield
    finally:
        for handle in handles:
            handle.remove()


def detach_marked_input(module: nn.Module, args: Any, output: Any) -> Any:
    """A forward hook that detaches an output that requires a gradient only because of the checkpointing mark.

    ``enable_input_require_grads`` of transformers registers a hook that marks the output of the input embeddings.
    Another hook may have added noise to the output since (NEFTune). If everything below the boundary is idle, the mark
    has no use and backward would run down to it.

    The output is not detached if the module has another forward hook, which may add a learned perturbation or read the
    gradient. It is not detached either if it depends on a parameter.
    """
    del args
    if not isinstance(output, torch.Tensor) or not output.requires_grad or not _has_only_library_hooks(module):
        return output
    # The graph cannot be inspected while it is compiled. The missing-gradient check reports a parameter lost there.
    return output.detach() if torch.compiler.is_compiling() or not _depends_on_parameter(output) else output


def _has_only_library_hooks(module: nn.Module) -> bool:
    """Whether all forward hooks on ``module`` are of trusted libraries, or copies of their marking hook."""
    return all(isinstance(hook, OwnHook) or _is_library_hook(hook) for hook in module._forward_hooks.values())


def _is_library_hook(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    if not isinstance(hook, (FunctionType, MethodType)):
        return False
    # Training scripts contain copies of the marking hook of transformers and PEFT, with the same name.
    return hook.__name__.startswith(MARK_HOOK_PREFIX) or hook.__module__.partition(".")[0] in TRUSTED_LIBRARIES


def _depends_on_parameter(output: torch.Tensor) -> bool:
    """Whether backward from ``output`` would reach a parameter."""
    nodes = [output.grad_fn] if output.grad_fn is not None else []
    for node in nodes:  # the list grows during the loop
        nodes += [above for above, _ in node.next_functions if above is not None and above not in nodes]
    leaves: list[Any] = [node for node in nodes if not node.next_functions]
    return any(leaf.name().endswith("AccumulateGrad") and isinstance(leaf.variable, nn.Parameter) for leaf in leaves)


@contextmanager
def parameters_inside_functions(model: nn.Module, parameters: Set[nn.Parameter]) -> Iterator[set[nn.Parameter]]:
    """A context that collects the parameters whose module runs inside a `torch.autograd.Function`.

    Args:
        model: The model that owns the parameters.
        parameters: The parameters to look for.

    Yields:
        A set that is filled while the context is open.
    """
    inside: set[nn.Parameter] = set()

    def note(module: nn.Module, args: Any) -> None:
        del args
        if module in owners and not torch.is_grad_enabled() and _is_inside_function(sys._getframe()):
            inside.update(owners[module])

    # Looked up now: during the forward pass, FSDP2 replaces the parameters of a module by gathered tensors.
    direct = {part: [p for p in part.parameters(recurse=False) if p in parameters] for part in model.modules()}
    owners = {part: members for part, members in direct.items() if members}
    handles = [module.register_forward_pre_hook(OwnHook(note, module)) for module in owners]
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def _is_inside_function(frame: FrameType | None) -> bool:
    while frame is not None:
        code = frame.f_code
        first = code.co_varnames[0] if code.co_name == "forward" and code.co_argcount else ""
        if first and isinstance(frame.f_locals.get(first), FunctionCtx):
            return True
        frame = frame.f_back
    return False
