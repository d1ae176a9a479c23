"""Find modules whose mode, training or evaluation, decides about random noise such as dropout and about nothing else.

The source of a class is the evidence. A class that is not understood is left in training mode, where it does at a fast
step what it does in standard training: it may have running statistics, auxiliary outputs or a cache.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


NOISE = ("drop", "stochastic_depth", "jitter", "mask_time_prob", "mask_feature_prob")
"""Parts of the names of dropout, layer drop, stochastic depth, router jitter and SpecAugment."""

HARMLESS = (*NOISE, "checkpointing", "requires_grad")
"""Activation checkpointing, and marks on inputs for it, change no value."""

NO_PASS = ("train", "eval", "__init__", "__init_subclass__")
"""Methods that are no part of a forward pass."""

_known: WeakKeyDictionary[type, bool | None] = WeakKeyDictionary()


def only_noise(module: nn.Module) -> bool:
    """Whether evaluation mode takes noise away from the forward pass of ``module`` itself and changes nothing else."""
    # A forward of somebody else, put on this one module. cuDNN has no backward of a recurrent layer in eval mode.
    if "forward" in vars(module) or isinstance(module, nn.RNNBase):
        return False
    verdicts = {_verdict(kind) for kind in type(module).__mro__ if kind not in (nn.Module, object)}
    return True in verdicts and False not in verdicts


def _verdict(kind: type) -> bool | None:
    """True for noise alone, False for anything else or what is not known, None if ``kind`` has no use for the mode."""
    if kind in (_DropoutNd, nn.MultiheadAttention) or kind.__module__ == nn.Dropout.__module__:
        return True
    if kind not in _known:
        ours = kind.__module__.startswith("transformers.")  # whose functions take a module for its dropout
        verdicts = {_noise_in(function, shares=ours) for function in _functions(kind)}
        _known[kind] = None if not verdicts else False not in verdicts
    return _known[kind]


def _functions(kind: type) -> Iterator[FunctionType]:
    """Methods of ``kind``, also behind decorators, in which the attribute ``training`` occurs."""
    for name, value in vars(kind).items():
        members = [value.fget, value.fset] if isinstance(value, property) else [value]
        for member in members:
            found = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            while isinstance(found, FunctionType) and name not in NO_PASS:
                if _mentions(found.__code__):
                    yield found
                found = vars(found).get("__wrapped__")


def _mentions(code: CodeType) -> bool:
    return "training" in code.co_names or any(_mentions(part) for part in code.co_consts if isinstance(part, CodeType))


def _noise_in(function: FunctionType, *, shares: bool) -> bool:
    """Whether each look at the mode in ``function`` is about noise, and nothing of the module is written.

    ``shares``: whether it may hand the module itself to other functions, which could look at the mode too.
    """
    try:  # of the code: of a function, `inspect.getsource` would look behind its decorators
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):
        return False
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    looks = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "training"]
    other = function.__code__.co_varnames[:1] != ("self",)  # writes are not seen then
    if not looks or other or _writes(tree) or (_hands_out_self(tree) and not shares):
        return False
    return all(_about_noise(look, parents) for look in looks)


def _about_noise(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression around ``node``, or the branch that it decides about, is about noise."""
    while not isinstance(node, ast.stmt):
        parent = parents[node]
        if isinstance(parent, ast.If):
            return _is_noise_branch(parent)
        if isinstance(parent, ast.Call):
            norm = "norm" in ast.unparse(parent.func).lower()  # it has running statistics, whatever it is given
            direct = [a for a in parent.args if isinstance(a, (ast.Name, ast.Attribute)) and not norm]
            if any(_names_noise(part) for part in [parent.func, *direct]):
                return True
        if isinstance(parent, ast.keyword) and parent.arg is not None and _is_noise(parent.arg):
            return True
        if isinstance(parent, ast.IfExp) and not any(isinstance(part, ast.Call) for part in ast.walk(parent)):
            return _names_noise(parent)
        node = parent
    return isinstance(node, ast.Assign) and all(_names_noise(target) for target in node.targets)


def _is_noise_branch(branch: ast.If) -> bool:
    """Whether the condition of ``branch`` is about noise, or all it does is to draw whether a layer is dropped."""
    parts = [node for part in [*branch.body, *branch.orelse] for node in ast.walk(part)]
    leaves = [node.value for node in parts if isinstance(node, ast.Return)]
    if _names_noise(branch.test):  # then it may return what it was given, or what a checkpoint returns
        return all(value is not None and (isinstance(value, ast.Name) or _names_noise(value)) for value in leaves)
    targets = [node.id for node in parts if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return bool(targets) and not branch.orelse and not leaves and all("drop" in name for name in targets)


def _names_noise(tree: ast.AST) -> bool:
    values = [vars(node).get(key) for node in ast.walk(tree) for key in ("id", "attr", "value")]
    return any(_is_noise(value) for value in values if isinstance(value, str))  # a value of text: for `getattr`


def _is_noise(name: str) -> bool:
    return any(part in name.lower() for part in HARMLESS)


def _hands_out_self(tree: ast.AST) -> bool:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = [value for call in calls for value in [*call.args, *(keyword.value for keyword in call.keywords)]]
    return any(isinstance(value, ast.Name) and value.id == "self" for value in given)


def _writes(tree: ast.AST) -> bool:
    """Whether an attribute of ``self`` is set, or what is in it is changed in place, its configuration apart."""
    others = _other_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in others:
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            changed: ast.AST = node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _in_place(node.func.attr):
            changed = node.func.value
        else:
            continue
        path: list[str] = []
        while isinstance(changed, (ast.Attribute, ast.Subscript)):
            path += [changed.attr] if isinstance(changed, ast.Attribute) else []
            changed = changed.value
        if not isinstance(changed, ast.Name) or "config" in path:
            continue
        if changed.id in others or (path and changed.id == "self"):
            return True
    return False


def _other_names(tree: ast.AST) -> set[str]:
    """Local names of attributes of ``self``, its configuration apart."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    own = [node for node in assigned if ast.unparse(node.value).startswith("self.") and not _calls(node.value)]
    targets = [target for node in own if "config" not in ast.unparse(node.value) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _calls(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name in ("append", "update", "extend")
