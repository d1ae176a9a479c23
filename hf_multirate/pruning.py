"""Keep autograd from recording anything below the live parameters.

An idle parameter does not require a gradient while a micro-batch runs forward and backward. If the
live parameters are a suffix of the forward pass, nothing below them then requires one either, so
autograd saves no activation there and backward stops at the boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from hf_multirate.hooks import OwnHook, last_hooks, tensors_in


@contextmanager
def idle(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch ``requires_grad`` off for ``parameters``, and give each its flag back on exit, also after an error."""
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def kept_idle(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch ``requires_grad`` off again before each forward pass of ``model``.

    PEFT switches it on for all adapters whenever it leaves ``disable_adapter()``, as trainers of TRL do for the
    log-probabilities of a reference within a step. It is on, too, in a copy of the model that is made between passes.
    """
    kept = list(parameters)
    inside = False

    def switch_off(*_: Any) -> None:
        nonlocal inside
        inside = True
        for parameter in kept:
            if parameter.requires_grad:
                parameter.requires_grad_(False)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def switch_on() -> None:
        if not inside:
            for parameter in kept:
                parameter.requires_grad_(True)

    before, after = OwnHook(switch_off, model, copied=switch_on), OwnHook(leave, model)
    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        kept.clear()  # a hook before this one may close the context, and torch runs this one all the same
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[str]]:
    """Collect the names of those ``modules`` of ``model`` whose output autograd has recorded.

    The list is filled while the context is open, in the order of the forward pass.
    """
    names: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            if name not in names and any(tensor.requires_grad for tensor in tensors_in(output)):
                names.append(name)

        return hook

    with last_hooks(model, [(module, note(name)) for name, module in modules]):
        yield names


def idle_modules(model: nn.Module, live: Sequence[nn.Parameter]) -> list[tuple[str, nn.Module]]:
    """The outermost modules that own parameters and none of the ``live`` ones, in order of registration."""
    identities = {id(parameter) for parameter in live}
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    embedded = {id(parameter) for part in embeddings for parameter in part.parameters()}
    found: list[tuple[str, nn.Module]] = []

    def walk(name: str, module: nn.Module) -> None:
        owned = {id(parameter) for parameter in module.parameters()}
        # A head tied to an embedding is recorded although the live part is a suffix.
        if not owned or (owned <= embedded and not any(part in embeddings for part in module.modules())):
            return
        # A container such as ModuleList has no forward of its own for a hook to see.
        if not owned & identities and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            if all(module is not known for _, known in found):  # one that two towers share is one
                found.append((name, module))
            return
        for child_name, child in module.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", model)
    return found
