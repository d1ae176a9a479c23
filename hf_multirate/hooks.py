"""Forward hooks that stay the last ones, whoever adds another in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
