"""Forward hooks that run after all other hooks, and temporary changes of modules during their forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


class OwnHook:
    """Hook of this package on a user's module or optimizer.

    In a copy or a pickle the hook is replaced by a function of the standard library that does nothing. The copy
    therefore keeps no reference to this package, and can be unpickled without it.

    Args:
        function: Function to call.
        owner: Object with the hook. A shallow copy of it shares its hooks; calls from the copy are ignored.
        copied: Function to call before a copy or a pickle is made.
    """

    def __init__(
        self, function: Callable[..., Any], owner: object = None, *, copied: Callable[[], None] | None = None
    ) -> None:
        self._function, self._owner, self._copied = function, owner, copied

    def __call__(self, *args: Any) -> Any:
        """Call the function if the first argument is the owner."""
        if self._owner is not None and args[0] is not self._owner:
            return None
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """Replace the hook in copies and pickles, see `object.__reduce__`."""
        if self._copied is not None:
            self._copied()
        return getattr, (nullcontext(), "__exit__")


@contextmanager
def last_hooks(
    model: nn.Module, hooks: Sequence[tuple[nn.Module, Callable[..., Any]]], *, renewed: bool = True
) -> Iterator[None]:
    """Context manager in which the forward hooks of ``hooks`` run after all other forward hooks.

    Args:
        model: The model that contains the modules.
        hooks: Pairs of a module and a hook.
        renewed: Whether to register the hooks again before each forward pass of ``model``, after hooks that were added
            in the meantime. Enabling gradient checkpointing within a step adds such a hook to the embeddings.
    """
    handles: list[Any] = []
    remaining = list(hooks)

    def renew(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        handles[:] = [module.register_forward_hook(OwnHook(hook, module)) for module, hook in remaining]

    renew()
    renewal = model.register_forward_pre_hook(OwnHook(renew, model)) if renewed and hooks else None
    try:
        yield
    finally:
        remaining.clear()  # torch still runs the renewal if an earlier hook closes this context
        for handle in [*handles, *([renewal] if renewal is not None else [])]:
            handle.remove()


@contextmanager
def around_forward(
    modules: Iterable[nn.Module],
    change: Callable[[nn.Module, Any], Callable[[], None] | None],
    convert: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """Context manager in which each of ``modules`` is changed during its forward pass, and restored even if it fails.

    Args:
        modules: The modules.
        change: Function of a module and its inputs that changes the module before its forward pass. It returns a
            function that restores the module, or None if it has not changed it.
        convert: Function that converts the output of a changed module. Other hooks then see the converted output and
            the restored module.
    """
    targets = dict.fromkeys(modules)
    restore: dict[nn.Module, Callable[[], None]] = {}

    def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if module not in restore:
            restore_module = change(module, (args, kwargs))
            if restore_module is not None:
                restore[module] = restore_module

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        del args
        if module not in restore:
            return None
        restore.pop(module)()
        return None if convert is None else convert(output)

    outside = convert is not None
    handles: list[Any] = []
    for module in targets:
        before, after = OwnHook(enter, module), OwnHook(leave, module)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=outside))
        handles.append(module.register_forward_hook(after, prepend=outside, always_call=outside))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for restore_module in restore.values():  # modules whose forward pass raised an error
            restore_module()


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A context in which ``module`` runs ``forward``; hooks of the module run as before."""
    attributes = vars(module)
    before = attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del attributes["forward"]
        else:
            attributes["forward"] = before


def tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dictionaries, tuples and lists."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
