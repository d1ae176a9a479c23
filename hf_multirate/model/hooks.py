"""Forward hooks that stay the last ones, whoever adds another, and changes of a module for its forward pass only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


class OwnHook:
    """A hook of this package on a module or an optimizer of the user.

    A copy or a pickle of the module has a method of the standard library in its place, which does nothing: it keeps
    nothing alive, and is read without this package.

    Args:
        function: What to call.
        owner: What the hook is on. A shallow copy of it shares its hooks, and is left alone.
        copied: Called before a copy or a pickle is made.
    """

    def __init__(
        self, function: Callable[..., Any], owner: object = None, *, copied: Callable[[], None] | None = None
    ) -> None:
        self._function, self._owner, self._copied = function, owner, copied

    def __call__(self, *args: Any) -> Any:
        """Call the function, if the first argument is the owner."""
        if self._owner is not None and args[0] is not self._owner:
            return None
        return self._function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """See `object.__reduce__`."""
        if self._copied is not None:
            self._copied()
        return getattr, (nullcontext(), "__exit__")


@contextmanager
def last_hooks(
    model: nn.Module, hooks: Sequence[tuple[nn.Module, Callable[..., Any]]], *, renewed: bool = True
) -> Iterator[None]:
    """While open, each module of ``hooks`` has its forward hook behind all others.

    Args:
        model: The model that the modules are in.
        hooks: Pairs of a module and a hook.
        renewed: Whether to put them behind others again before each forward pass of ``model``: activation
            checkpointing may be put on within a step, and its mark on the embeddings with it.
    """
    handles: list[Any] = []
    wanted = list(hooks)

    def renew(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        handles[:] = [module.register_forward_hook(OwnHook(hook, module)) for module, hook in wanted]

    renew()
    renewal = model.register_forward_pre_hook(OwnHook(renew, model)) if renewed and hooks else None
    try:
        yield
    finally:
        wanted.clear()  # a hook before the renewal may close this, and torch runs the renewal all the same
        for handle in [*handles, *([renewal] if renewal is not None else [])]:
            handle.remove()


@contextmanager
def around_forward(
    modules: Iterable[nn.Module],
    change: Callable[[nn.Module, Any], Callable[[], None] | None],
    convert: Callable[[Any], Any] | None = None,
) -> Iterator[None]:
    """While open, each of ``modules`` is changed for the duration of its own forward pass, also if that fails.

    Args:
        modules: The modules.
        change: Changes a module that is about to run on some inputs, and returns what takes that back; None if it
            leaves the module alone.
        convert: What to make of the output of one that was changed. Hooks of others then see what comes of it, and
            the module as it was.
    """
    own = dict.fromkeys(modules)
    undo: dict[nn.Module, Callable[[], None]] = {}

    def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if module not in undo:
            take_back = change(module, (args, kwargs))
            if take_back is not None:
                undo[module] = take_back

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        del args
        if module not in undo:
            return None
        undo.pop(module)()
        return None if convert is None else convert(output)

    outside = convert is not None
    handles: list[Any] = []
    for module in own:
        before, after = OwnHook(enter, module), OwnHook(leave, module)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=outside))
        handles.append(module.register_forward_hook(after, prepend=outside, always_call=outside))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for take_back in undo.values():  # left open by an error in a forward pass
            take_back()


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
