"""A copy of an optimizer to try things on, which shares nothing with the original that a step could change."""

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


LARGEST = 1 << 24
"""Elements of a tensor that is copied whole; a larger one that has not the shape of a parameter is shared."""
OBJECTS = 200_000
"""Objects that are copied at most: an optimizer that refers to a whole data set shares the rest."""

_SHARED = (str, bytes, float, complex, type, types.ModuleType, torch.Size, Enum, logging.Logger)
_GENERATORS = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, itertools.count)


class Replica:
    """Copies an optimizer with all that it holds: inner optimizers, lists of parameters, closures, bound methods.

    Each parameter gets a stand-in that starts with its values. Tensors of the same shape, such as master weights, are
    cut in the same way, so that both still fit together.

    Args:
        optimizer: The optimizer, which is read only.
        edge: Elements to which matrices and larger parameters are cut in each dimension; None for none.
        fresh: Whether the copies begin without state.
    """

    def __init__(self, optimizer: Optimizer, *, edge: int | None, fresh: bool) -> None:
        self._edge, self._fresh = edge, fresh
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._shapes = {tuple(local(p.detach()).shape) for p in parameters if not is_lazy(p)}
        self._ids = {id(p): p for p in parameters}
        self._memo: dict[int, Any] = {}
        self._originals: list[Any] = []
        self.optimizers: list[Optimizer] = []
        """The copies of the optimizer and of those that it holds."""
        self.originals: list[Tensor] = []
        """The tensors that were copied."""
        self.optimizer: Optimizer = self._of(optimizer)
        self.stand_ins: dict[Tensor, nn.Parameter] = {p: self._of(p) for p in parameters}

    def _of(self, value: Any) -> Any:
        """The copy of ``value``; what cannot be copied, or need not be, is shared."""
        if value is None or isinstance(value, _SHARED) or len(self._memo) > OBJECTS:
            return value
        if isinstance(value, int):  # some optimizers know parameters by their id
            return id(self._of(self._ids[value])) if type(value) is int and value in self._ids else value
        if id(value) not in self._memo:
            self._originals.append(value)
            self._keep(value, self._copied(value))
        return self._memo[id(value)]

    def _keep(self, value: Any, made: Any) -> Any:
        return self._memo.setdefault(id(value), made)

    def _copied(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, _GENERATORS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return copy.deepcopy(value)
        if isinstance(value, io.IOBase):  # what a step writes to a file stays out of it
            return io.StringIO() if isinstance(value, io.TextIOBase) else io.BytesIO()
        if isinstance(value, torch.Generator):
            return torch.Generator(value.device).set_state(value.get_state())
        for way in (self._container, self._callable, self._reference, self._instance):
            if (made := way(value)) is not None:
                return made
        return value

    def _tensor(self, value: Tensor) -> Tensor:
        self.originals.append(value)
        parameter = isinstance(value, nn.Parameter)
        if is_lazy(value):
            made = torch.ones(4, 4)
        else:
            shard = local(value.detach())
            known = parameter or tuple(shard.shape) in self._shapes
            if not known and shard.numel() > LARGEST:
                return value
            made = self._values(shard, known and (shard.dim() > 1 or shard.numel() > LARGEST))
        made = nn.Parameter(made, requires_grad=value.requires_grad) if parameter else made
        self._keep(value, made.requires_grad_(value.requires_grad))
        # Some optimizers tell parameters apart by attributes that were set on them.
        vars(made).update({key: self._of(item) for key, item in vars(value).items()})
        return made

    def _values(self, shard: Tensor, cut: bool) -> Tensor:
        edge = self._edge if cut else None
        if type(shard) is Tensor and shard.numel():
            return shard[tuple(slice(edge) for _ in shard.shape)].clone()
        # A quantised tensor cannot be cut, and of a short parameter some processes have an empty shard.
        return torch.ones([len(range(n)[:edge]) or n for n in shard.shape], dtype=shard.dtype, device=shard.device)

    def _container(self, value: Any) -> Any:
        if type(value) in (tuple, frozenset):
            return type(value)(map(self._of, value))
        if isinstance(value, tuple) and "_fields" in vars(type(value)):
            return type(value)(*map(self._of, value))
        if not isinstance(value, dict | list | set | deque):
            return None
        made = self._keep(value, copy.copy(value))
        made.clear()
        if isinstance(value, dict):
            made.update({self._of(key): self._of(item) for key, item in value.items()})
        elif isinstance(value, set):
            made.update(map(self._of, value))
        else:
            made.extend(map(self._of, value))
        return made

    def _callable(self, value: Any) -> Any:
        if isinstance(value, types.MethodType):
            return types.MethodType(self._of(value.__func__), self._of(value.__self__))
        if isinstance(value, types.BuiltinMethodType):
            shared = value.__self__ is None or isinstance(value.__self__, types.ModuleType | type)
            return value if shared else getattr(self._of(value.__self__), value.__name__)
        if isinstance(value, functools.partial):
            keywords = {key: self._of(item) for key, item in value.keywords.items()}
            return functools.partial(self._of(value.func), *map(self._of, value.args), **keywords)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return None

    def _reference(self, value: Any) -> Any:
        if isinstance(value, weakref.ref) and (target := value()) is not None:
            return weakref.ref(self._of(target))
        if isinstance(value, types.CellType):
            cell = self._keep(value, types.CellType())
            with suppress(ValueError):  # empty before its variable is set
                cell.cell_contents = self._of(value.cell_contents)
            return cell
        return None

    def _function(self, value: types.FunctionType) -> types.FunctionType:
        if not (value.__closure__ or value.__defaults__ or value.__kwdefaults__):
            return value
        cells = None if value.__closure__ is None else tuple(map(self._of, value.__closure__))
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
        self._keep(value, made)
        made.__defaults__, made.__kwdefaults__ = self._of(value.__defaults__), self._of(value.__kwdefaults__)
        vars(made).update({key: self._of(item) for key, item in vars(value).items()})
        return made

    def _instance(self, value: Any) -> Any:
        attributes = vars(value) if type(value).__dictoffset__ else {}
        slots = _slots(value)
        if not attributes and not slots:
            return value
        try:
            made: Any = object.__new__(_without_end(type(value)))
        except TypeError:  # made in C, such as a stream or a group of processes
            return value
        self._keep(value, made)
        if isinstance(value, Optimizer):
            self.optimizers.append(made)
            attributes = self._without_hooks(attributes)
        vars_of_made = vars(made) if attributes else {}
        for name, item in attributes.items():
            vars_of_made[name] = self._of(item)
        for name, item in slots.items():
            object.__setattr__(made, name, self._of(item))
        return made

    def _without_hooks(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Hooks are those of the original alone, and so may its state be."""
        state = attributes.get("state")
        if self._fresh and isinstance(state, dict):
            # APOLLO leaves a seed in the state of each parameter when it is made.
            seeds = {p: {"seed": s["seed"]} for p, s in state.items() if isinstance(s, dict) and "seed" in s}
            self._originals.append(state)
            self._keep(state, defaultdict(dict, {self._of(p): seed for p, seed in seeds.items()}))
        return {
            name: OrderedDict() if name.startswith("_optimizer_") and name.endswith("_hooks") else item
            for name, item in attributes.items()
        }


def _without_end(kind: type) -> type:
    """``kind``, or a subclass without ``__del__``: the end of a copy closes and deletes nothing of the original."""
    return kind if getattr(kind, "__del__", None) is None else type(kind)(kind.__name__, (kind,), {"__del__": _ends})


def _ends(value: Any) -> None:
    """Nothing is left to do."""


def _slots(value: Any) -> dict[str, Any]:
    """Attributes of an instance that are in slots and set."""
    names = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    found = {}
    for name in names:
        with suppress(AttributeError):
            found[name] = object.__getattribute__(value, name)
    return found


def _names(slots: Any) -> list[str]:
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]
