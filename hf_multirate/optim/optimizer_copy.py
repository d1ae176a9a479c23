"""Copy an optimizer so that steps of the copy do not change the original."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import logging
import random
import types
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from hf_multirate.optim.dtensor import local


MAX_ELEMENTS = 1 << 24
"""Largest tensor that is copied as a whole. A larger tensor is shared unless it has the shape of a parameter."""
MAX_OBJECTS = 200_000
"""Largest number of copied objects. Further objects, such as those of a data set, are shared."""

_SHARED_TYPES = (str, bytes, float, complex, type, types.ModuleType, torch.Size, Enum, logging.Logger)
_DEEP_COPIED_TYPES = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, itertools.count)


class OptimizerCopy:
    """A copy of an optimizer and of all objects in it: inner optimizers, parameters, closures and bound methods.

    Each parameter is replaced by a stand-in with the same values. Stand-ins of matrices may be cut to a smaller shape.
    Tensors with the shape of a parameter, such as master weights, are cut in the same way.

    Args:
        optimizer: The optimizer; it is only read.
        edge: Number of elements to which each dimension of matrices is cut; None for no cut.
        fresh: Whether the copies start without optimizer state.
    """

    def __init__(self, optimizer: Optimizer, *, edge: int | None, fresh: bool) -> None:
        self._edge, self._fresh = edge, fresh
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._shapes = {tuple(local(p.detach()).shape) for p in parameters if not is_lazy(p)}
        self._ids = {id(p): p for p in parameters}
        self._memo: dict[int, Any] = {}
        self._originals: list[Any] = []
        self.optimizers: list[Optimizer] = []
        """The copies of the optimizer and of its inner optimizers."""
        self.originals: list[Tensor] = []
        """The original tensors that were copied."""
        self.optimizer: Optimizer = self._copy_of(optimizer)
        self.stand_ins: dict[Tensor, nn.Parameter] = {p: self._copy_of(p) for p in parameters}

    def _copy_of(self, value: Any) -> Any:
        """The copy of ``value``, or ``value`` itself if it cannot or need not be copied."""
        if value is None or isinstance(value, _SHARED_TYPES) or len(self._memo) > MAX_OBJECTS:
            return value
        if isinstance(value, int):  # some optimizers store the id of a parameter
            return id(self._copy_of(self._ids[value])) if type(value) is int and value in self._ids else value
        if id(value) not in self._memo:
            self._originals.append(value)
            self._remember(value, self._new_copy(value))
        return self._memo[id(value)]

    def _remember(self, value: Any, duplicate: Any) -> Any:
        return self._memo.setdefault(id(value), duplicate)

    def _new_copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, _DEEP_COPIED_TYPES):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return copy.deepcopy(value)
        if isinstance(value, io.IOBase):  # the copy must not write to a file
            return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
        if isinstance(value, torch.Generator):
            return torch.Generator(value.device).set_state(value.get_state())
        for method in (self._container, self._callable, self._reference, self._instance):
            if (duplicate := method(value)) is not None:
                return duplicate
        return value

    def _tensor(self, value: Tensor) -> Tensor:
        self.originals.append(value)
        parameter = isinstance(value, nn.Parameter)
        if is_lazy(value):
            duplicate = torch.ones(4, 4)
        else:
            shard = local(value.detach())
            like_parameter = parameter or tuple(shard.shape) in self._shapes
            if not like_parameter and shard.numel() > MAX_ELEMENTS:
                return value
            duplicate = self._values(shard, like_parameter and (shard.dim() > 1 or shard.numel() > MAX_ELEMENTS))
        duplicate = nn.Parameter(duplicate, requires_grad=value.requires_grad) if parameter else duplicate
        self._remember(value, duplicate.requires_grad_(value.requires_grad))
        # Some optimizers distinguish parameters by attributes set on them.
        vars(duplicate).update({key: self._copy_of(item) for key, item in vars(value).items()})
        return duplicate

    def _values(self, shard: Tensor, cut: bool) -> Tensor:
        edge = self._edge if cut else None
        if type(shard) is Tensor and shard.numel():
            return shard[tuple(slice(edge) for _ in shard.shape)].clone()
        # A quantised tensor cannot be sliced, and some processes have an empty shard of a short parameter.
        return torch.ones([len(range(n)[:edge]) or n for n in shard.shape], dtype=shard.dtype, device=shard.device)

    def _container(self, value: Any) -> Any:
        if type(value) in (tuple, frozenset):
            return type(value)(map(self._copy_of, value))
        if isinstance(value, tuple) and "_fields" in vars(type(value)):
            return type(value)(*map(self._copy_of, value))
        if not isinstance(value, dict | list | set | deque):
            return None
        duplicate = self._remember(value, copy.copy(value))
        duplicate.clear()
        if isinstance(value, dict):
            duplicate.update({self._copy_of(key): self._copy_of(item) for key, item in value.items()})
        elif isinstance(value, set):
            duplicate.update(map(self._copy_of, value))
        else:
            duplicate.extend(map(self._copy_of, value))
        return duplicate

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return types.MethodType(self._copy_of(value.__func__), self._copy_of(value.__self__))
        if isinstance(value, types.BuiltinMethodType):
            shared = value.__self__ is None or isinstance(value.__self__, types.ModuleType | type)
            return value if shared else getattr(self._copy_of(value.__self__), value.__name__)
        if isinstance(value, functools.partial):
            keywords = {key: self._copy_of(item) for key, item in value.keywords.items()}
            return functools.partial(self._copy_of(value.func), *map(self._copy_of, value.args), **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return None

    def _reference(self, value: Any) -> Any:
        if isinstance(value, weakref.ref) and (target := value()) is not None:
            return weakref.ref(self._copy_of(target))
        if isinstance(value, types.CellType):
            cell = self._remember(value, types.CellType())
            with suppress(ValueError):  # the cell is empty until its variable is set
                cell.cell_contents = self._copy_of(value.cell_contents)
            return cell
        return None

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        if not (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
            return value
        cells = None if value.__closure__ is None else tuple(map(self._copy_of, value.__closure__))
        duplicate = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self._remember(value, duplicate)
        duplicate.__defaults__, duplicate.__kwdefaults__ = (
            self._copy_of(value.__defaults__),
            self._copy_of(value.__kwdefaults__),
        )
        vars(duplicate).update({key: self._copy_of(item) for key, item in vars(value).items()})
        return duplicate

    def _instance(self, value: Any) -> Any:
        attributes = vars(value) if type(value).__dictoffset__ else {}
        slots = _slots(value)
        if not attributes and not slots:
            return value
        try:
            duplicate: Any = object.__new__(_without_del(type(value)))
        except TypeError:  # a C type, such as a stream or a process group
            return value
        self._remember(value, duplicate)
        if isinstance(value, Optimizer):
            self.optimizers.append(duplicate)
            attributes = self._without_hooks(attributes)
        duplicate_vars = vars(duplicate) if attributes else {}
        for name, item in attributes.items():
            duplicate_vars[name] = self._copy_of(item)
        for name, item in slots.items():
            object.__setattr__(duplicate, name, self._copy_of(item))
        return duplicate

    def _without_hooks(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """``attributes`` of an optimizer without its hooks, and without its state if the copy is fresh."""
        state = attributes.get("state")
        if self._fresh and isinstance(state, dict):
            # APOLLO stores a seed in the state of each parameter when it is created.
            seeds = {p: {"seed": s["seed"]} for p, s in state.items() if isinstance(s, dict) and "seed" in s}
            self._originals.append(state)
            self._remember(state, defaultdict(dict, {self._copy_of(p): seed for p, seed in seeds.items()}))
        return {
            name: OrderedDict() if name.startswith("_optimizer_") and name.endswith("_hooks") else item
            for name, item in attributes.items()
        }


def _without_del(kind: type) -> type:
    """``kind``, or a subclass without ``__del__``, so that deleting the copy closes nothing of the original."""
    has_del = getattr(kind, "__del__", None) is not None
    return type(kind)(kind.__name__, (kind,), {"__del__": _do_nothing}) if has_del else kind


def _do_nothing(value: Any) -> None:
    """Replaces ``__del__``."""


def _slots(value: Any) -> dict[str, Any]:
    """Name -> value of the slots of an instance that are set."""
    names = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    values = {}
    for name in names:
        with suppress(AttributeError):
            values[name] = object.__getattribute__(value, name)
    return values


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
