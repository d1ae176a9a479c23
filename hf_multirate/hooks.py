"""Forward hooks that stay the last ones, whoever adds another, and changes of a module for its forward pass only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


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

    def renew(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        handles[:] = [module.register_forward_hook(hook) for module, hook in hooks]

    renew()
    renewal = model.register_forward_pre_hook(renew) if renewed and hooks else None
    try:
        yield
    finally:
        for handle in [*handles, *([renewal] if renewal is not None else [])]:
            handle.remove()


@contextmanager
def around_forward(
    modules: Iterable[nn.Module],
    change: Callable[[nn.Module], Callable[[], None]],
    convert: Callable[[Any], Any] = lambda output: output,
) -> Iterator[None]:
    """While open, each of ``modules`` is changed for the duration of its own forward pass, also if that fails.

    Args:
        modules: The modules.
        change: Changes a module, and returns what takes that back.
        convert: What to make of its output.
    """
    undo: dict[nn.Module, Callable[[], None]] = {}

    def enter(module: nn.Module, args: Any) -> None:
        del args
        if module not in undo:
            undo[module] = change(module)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        del args
        if module in undo:
            undo.pop(module)()
        return convert(output)

    handles = []
    for module in modules:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for take_back in undo.values():  # left open by an error in a forward pass
            take_back()
