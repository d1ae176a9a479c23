"""Find modules whose ``training`` flag controls only random noise such as dropout.

The source code of a class decides. A class whose source cannot be analysed stays in training mode, because it may have
running statistics, auxiliary outputs or a cache. At a fast step it then behaves as in standard training.
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
"""Substrings of names for dropout, layer drop, stochastic depth, router jitter and SpecAugment."""

HARMLESS = (*NOISE, "checkpointing", "requires_grad")
"""As `NOISE`, with activation checkpointing and its marks on inputs, which change no value."""

NO_PASS = ("train", "eval", "kernelize", "__init__", "__init_subclass__")
"""Methods outside of the forward pass."""

_verdicts: WeakKeyDictionary[type, bool | None] = WeakKeyDictionary()


def only_noise(module: nn.Module) -> bool:
    """Whether eval mode removes noise from the forward pass of ``module`` itself and changes nothing else."""
    # A forward assigned to the instance is not analysed. cuDNN has no backward of recurrent layers in eval mode.
    if "forward" in vars(module) or isinstance(module, nn.RNNBase):
        return False
    verdicts = {_verdict(kind) for kind in type(module).__mro__ if kind not in (nn.Module, object)}
    return True in verdicts and False not in verdicts


def _verdict(kind: type) -> bool | None:
    """True if the mode of ``kind`` controls only noise, False if anything else, None if ``kind`` does not use it."""
    if kind in (_DropoutNd, nn.MultiheadAttention) or kind.__module__ == nn.Dropout.__module__:
        return True
    if kind not in _verdicts:
        # Functions of transformers get a module in order to apply its dropout.
        passes_self = kind.__module__.startswith("transformers.")
        verdicts = {_noise_in(function, may_pass_self=passes_self) for function in _functions(kind)}
        _verdicts[kind] = None if not verdicts else False not in verdicts
    return _verdicts[kind]


def _functions(kind: type) -> Iterator[FunctionType]:
    """Methods of ``kind``, decorated ones included, in which the attribute ``training`` occurs."""
    for name, value in vars(kind).items():
        members = [value.fget, value.fset] if isinstance(value, property) else [value]
        for member in members:
            function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            while isinstance(function, FunctionType) and name not in NO_PASS:
                if _mentions(function.__code__):
                    yield function
                function = vars(function).get("__wrapped__")


def _mentions(code: CodeType) -> bool:
    return "training" in code.co_names or any(_mentions(part) for part in code.co_consts if isinstance(part, CodeType))


def _noise_in(function: FunctionType, *, may_pass_self: bool) -> bool:
    """Whether ``function`` reads the mode only for noise and writes no attribute of the module.

    Args:
        function: A method of a module.
        may_pass_self: Whether it may pass the module to not_a_method functions, which could read the mode too.
    """
    try:  # the source of the code object: that of a function would be the innermost decorated function
        tree = ast.parse(textwrap.dedent(inspect.getsource(function.__code__)))
    except (OSError, TypeError, SyntaxError):
        return False
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "training"]
    not_a_method = function.__code__.co_varnames[:1] != ("self",)  # writes to attributes cannot be detected then
    if not reads or not_a_method or _writes(tree) or (_passes_self(tree) and not may_pass_self):
        return False
    return all(_concerns_noise(read, parents) for read in reads)


def _concerns_noise(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression that contains ``node``, or the branch whose condition contains it, concerns noise."""
    while not isinstance(node, ast.stmt):
        parent = parents[node]
        if isinstance(parent, ast.If):
            return _is_noise_branch(parent)
        if isinstance(parent, ast.Call):
            function = ast.unparse(parent.func).lower()
            if "causal_mask" in function:  # transformers 4.57: whether a mask without effect may be left out
                return True
            norm = "norm" in function  # it has running statistics
            direct = [a for a in parent.args if isinstance(a, (ast.Name, ast.Attribute)) and not norm]
            if any(_names_noise(part) for part in [parent.func, *direct]):
                return True
        if isinstance(parent, ast.keyword) and parent.arg is not None and _is_noise(parent.arg):
            return True
        # transformers 4.57: skip_the_layer = self.training and dropout_probability < self.layerdrop
        value = isinstance(parent, ast.BoolOp) and isinstance(parents[parent], ast.Assign)
        if (value or isinstance(parent, ast.IfExp)) and not any(isinstance(p, ast.Call) for p in ast.walk(parent)):
            return _names_noise(parent)
        node = parent
    return isinstance(node, ast.Assign) and all(_names_noise(target) for target in node.targets)


def _is_noise_branch(branch: ast.If) -> bool:
    """Whether the condition of ``branch`` concerns noise, or the branch only draws whether a layer is dropped."""
    parts = [node for part in [*branch.body, *branch.orelse] for node in ast.walk(part)]
    leaves = [node.value for node in parts if isinstance(node, ast.Return)]
    if _names_noise(branch.test):  # it may return its input, or the result of a checkpoint function
        return all(value is not None and (isinstance(value, ast.Name) or _names_noise(value)) for value in leaves)
    targets = [node.id for node in parts if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return bool(targets) and not branch.orelse and not leaves and all("drop" in name for name in targets)


def _names_noise(tree: ast.AST) -> bool:
    values = [vars(node).get(key) for node in ast.walk(tree) for key in ("id", "attr", "value")]
    return any(_is_noise(value) for value in values if isinstance(value, str))  # string values: names for `getattr`


def _is_noise(name: str) -> bool:
    return any(part in name.lower() for part in HARMLESS)


def _passes_self(tree: ast.AST) -> bool:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    arguments = [value for call in calls for value in [*call.args, *(keyword.value for keyword in call.keywords)]]
    return any(isinstance(value, ast.Name) and value.id == "self" for value in arguments)


def _writes(tree: ast.AST) -> bool:
    """Whether an attribute of ``self`` other than its configuration is set or changed in place."""
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id in aliases:
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
        if changed.id in aliases or (path and changed.id == "self"):
            return True
    return False


def _aliases(tree: ast.AST) -> set[str]:
    """Local variables that are attributes of ``self`` other than its configuration."""
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    from_self = [node for node in assigned if ast.unparse(node.value).startswith("self.") and not _calls(node.value)]
    targets = [target for node in from_self if "config" not in ast.unparse(node.value) for target in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _calls(tree: ast.AST) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name in ("append", "update", "extend")
