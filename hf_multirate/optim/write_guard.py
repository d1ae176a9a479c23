"""Run an optimizer without any lasting change of parameters, gradients, settings and random numbers."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_multirate.model.random_state import random_state_restored
from hf_multirate.optim.dtensor import local


class ProtectedTensorError(Exception):
    """An operation would have written to a protected tensor."""


class WriteGuard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A torch dispatch mode that raises `ProtectedTensorError` before an operation writes to one of ``tensors``."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._protected = {_memory(tensor) for tensor in tensors}
        self._written: dict[Any, list[tuple[int, str]]] = {}
        self.stopped = False
        """Whether an operation was stopped. The error itself may have been caught by other code."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each operation."""
        if func not in self._written:
            arguments = enumerate(func._schema.arguments)
            self._written[func] = [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]
        kwargs = kwargs or {}
        for i, name in self._written[func]:
            written = args[i] if i < len(args) else kwargs.get(name)
            if any(isinstance(leaf, Tensor) and _memory(leaf) in self._protected for leaf in tree_leaves(written)):
                self.stopped = True
                raise ProtectedTensorError(f"{func} would write to a tensor of the run")
        return func(*args, **kwargs)


def _memory(tensor: Tensor) -> int:
    try:
        return int(local(tensor).untyped_storage()._cdata)
    except NotImplementedError:  # sparse
        return id(tensor)


@contextmanager
def restored_on_exit(optimizer: Optimizer) -> Iterator[None]:
    """A context without gradients and global hooks of ``optimizer``; everything is restored on exit.

    Values of parameters are not copied: see `WriteGuard`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [(p, p.data, p.grad, p.requires_grad) for p in parameters]
    settings = [(group, dict(group)) for group in optimizer.param_groups]
    hooks: list[Any] = [torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks]
    saved_hooks = [dict(registry) for registry in hooks]
    try:
        for registry in hooks:
            registry.clear()
        for parameter in parameters:
            parameter.grad = None
        with random_state_restored(parameters), _class_attributes_restored():
            yield
    finally:
        for registry, entries in zip(hooks, saved_hooks, strict=True):
            registry.update(entries)
        for group, entries in settings:
            group.clear()
            group.update(entries)
        for parameter, data, gradient, requires_grad in states:
            if local(parameter.detach()).data_ptr() != local(data).data_ptr():
                parameter.data = data
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)


@contextmanager
def _class_attributes_restored() -> Iterator[None]:
    """A context that restores the attributes of optimizer classes, where a step may count its calls.

    Classes of torch are skipped.
    """
    kinds = [kind for kind in _subclasses(Optimizer) if not kind.__module__.startswith("torch.")]
    saved = [(kind, dict(vars(kind))) for kind in kinds]
    containers = [v for _, entries in saved for v in entries.values() if isinstance(v, dict | list | set | deque)]
    contents = [(container, container.copy()) for container in containers]
    try:
        yield
    finally:
        for kind, entries in saved:
            for name in [name for name in vars(kind) if name not in entries]:
                delattr(kind, name)
            for name, value in entries.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)
        for container, content in contents:
            if not _is_same(container, content):
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(content)


def _subclasses(kind: type) -> set[type]:
    direct: list[type] = kind.__subclasses__()
    return {*direct, *(below for sub in direct for below in _subclasses(sub))}


def _is_same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects in the same order."""
    pairs = (one.values(), other.values()) if isinstance(one, dict) else (one, other)
    keys = not isinstance(one, dict) or list(one) == list(other)
    return len(one) == len(other) and keys and all(map(operator.is_, *pairs))
