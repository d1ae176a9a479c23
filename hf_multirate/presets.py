"""Named choices of parameters: the head, the last N blocks, a fraction of the depth, one of N parts by depth.

A fast part saves time only if it is a suffix of the forward pass, because only then can the
backward pass stop at its lower edge. Module registration is not execution order, so wherever the
two may differ the doubtful module is left slow: that costs a few parameters, never the saving.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_multirate.groups import PresetValue
from hf_multirate.names import named


def preset_names(kind: str, value: PresetValue, model: nn.Module) -> frozenset[str]:
    """Names of the parameters in a preset, spelled as ``model.named_parameters()`` spells them.

    A tied parameter belongs to a preset only if every place it is used at does.

    Args:
        kind: ``"head"`` (everything outside ``model.base_model``), ``"last"`` (the head, what follows
            the largest stack of like blocks, and the last blocks of that stack), ``"depth"`` (``"last"`` with
            a fraction of the blocks) or ``"part"`` (the I-th of N parts of the stack from the top; the first takes
            all above it and the last all below).
        value: Nothing for ``"head"``, a number of blocks for ``"last"``, a fraction in (0, 1] for ``"depth"``,
            I and N for ``"part"``.
        model: A transformers model, a peft model around one, or (not for ``"head"``) any module.

    >>> sorted(preset_names("last", 1, nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))))
    ['2.bias', '2.weight']
    """
    if kind == "head":
        if value is not None:
            raise ValueError(f"preset 'head' takes no value, got {value!r}; write 'head', or 'last:1' for more")
        fast = _head(model)
        if not fast:
            raise ValueError(_why_no_head(model))
    elif kind == "part" and isinstance(value, tuple):
        fast = _part(model, *value)
    elif kind in ("last", "depth"):
        fast = top(model, _block_count(kind, value, model))
    else:
        raise ValueError(f"a preset is one of 'head', 'last', 'depth', 'part', got {kind!r}")
    return frozenset(name for name, parameter in named(model).items() if parameter in fast)


def stack_of(model: nn.Module) -> tuple[str, int]:
    """Path of the largest stack of like blocks, and its number of blocks.

    A stack is a ``ModuleList`` or ``Sequential`` of at least two modules of one class that own
    parameters. Of equally large ones the last registered counts: a decoder comes after its encoder.
    """
    best, most = None, 0
    for path, module in model.named_modules():
        if _is_stack(module):
            size = sum(parameter.numel() for parameter in module.parameters())
            best, most = (path, size) if size >= most else (best, most)
    if best is None:
        raise ValueError(
            f"{type(model).__name__} has no stack: no ModuleList or Sequential of two or more modules of one class; "
            "name the fast parameters with a regular expression instead"
        )
    return best, len(block_paths(model.get_submodule(best)))


def block_paths(stack: nn.Module) -> list[str]:
    """Names of the blocks of ``stack``, in order."""
    # named_children() lists a shared block once: one block applied twelve times is no stack.
    return [name for name, child in stack.named_children() if any(True for _ in child.parameters())]


def _is_stack(module: nn.Module) -> bool:
    blocks = block_paths(module) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []
    return len(blocks) > 1 and len({type(module.get_submodule(name)) for name in blocks}) == 1


def _block_count(kind: str, value: PresetValue, model: nn.Module) -> int:
    if kind == "last" and (not isinstance(value, int) or value < 1):
        raise ValueError(f"preset 'last' takes a number of blocks, 1 or more, got {value!r}; for example 'last:1'")
    if kind == "depth" and (not isinstance(value, (int, float)) or not 0 < value <= 1):
        raise ValueError(f"preset 'depth' takes a fraction in (0, 1], got {value!r}; for example 'depth:0.25'")
    assert isinstance(value, (int, float))  # checked above
    path, blocks = stack_of(model)
    count = int(value) if kind == "last" else max(1, round(value * blocks))
    if count > blocks:
        raise ValueError(
            f"'last:{count}' asks for more than the {blocks} blocks of {path!r}; use at most last:{blocks}"
        )
    return count


def top(model: nn.Module, count: int) -> set[nn.Parameter]:
    """Parameters of the last blocks of the stack, of what follows it, and of the head."""
    path, _ = stack_of(model)
    stack = model.get_submodule(path)
    fast = [_join(path, name) for name in block_paths(stack)[-count:]] + _followers(model, path)
    prefixes = tuple(f"{name}." for name in fast)
    head = _head(model) or set()
    if not head.isdisjoint(stack.parameters()):
        head = set()  # The stack is part of the head (a decoder on a base model): not all of it is above the cut.
    return {
        parameter
        for parameter, names in _places(model).items()
        if parameter in head or all(name.startswith(prefixes) for name in names)
    }


def _part(model: nn.Module, part: int, parts: int) -> set[nn.Parameter]:
    path, blocks = stack_of(model)
    if parts > blocks:
        raise ValueError(
            f"'part:{part}/{parts}' asks for {parts} parts of the {blocks} blocks of {path!r}; use at most {blocks}"
        )
    # Where the parts cannot be equal the lower ones are larger, which makes more steps cheap.
    above = top(model, blocks * (part - 1) // parts) if part > 1 else set()
    return (set(model.parameters()) if part == parts else top(model, blocks * part // parts)) - above


def _followers(model: nn.Module, path: str) -> list[str]:
    """Paths of the modules registered after the stack, or after a module that contains it."""
    followers, parent, parent_path = [], model, ""
    for step in path.split(".") if path else []:
        names = [name for name, _ in parent.named_children()]
        for name in names[names.index(step) + 1 :]:
            sibling = parent.get_submodule(name)
            if not _is_input(name, sibling):
                followers.append(_join(parent_path, name))
            elif not any(_is_stack(module) for module in sibling.modules()):
                # A bare embedding feeds the bottom of the stack, and what is registered behind it
                # serves it (DeBERTa's rel_embeddings, LayerNorm, conv). A tower with a stack of
                # its own is only passed over: CLIP's projections do follow the other tower.
                break
        parent, parent_path = parent.get_submodule(step), _join(parent_path, step)
    return followers


def _is_input(name: str, module: nn.Module) -> bool:
    # The name counts too: BART registers layernorm_embedding after the layers it feeds, ViT's
    # position_embeddings are a bare parameter. Only names that own parameters: every LoRA layer
    # has an empty child called lora_embedding_A.
    named = any("embed" in f"{name}.{inner}".lower() for inner, _ in module.named_parameters())
    return named or any(isinstance(inner, nn.Embedding) for inner in module.modules())


def _head(model: nn.Module) -> set[nn.Parameter] | None:
    """Parameters outside the base model; None without a base model."""
    wrapped = _unwrap(model)
    base = getattr(wrapped, "base_model", None)
    return set(wrapped.parameters()) - set(base.parameters()) if isinstance(base, nn.Module) else None


def _unwrap(model: nn.Module) -> nn.Module:
    # A PeftModel's own base_model is its tuner, which contains the head. Probed by name because
    # peft is an optional dependency.
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _why_no_head(model: nn.Module) -> str:
    wrapped = _unwrap(model)
    kind = type(wrapped).__name__
    if _head(model) is None:
        return f"{kind} has no base_model, so no head is marked off; use 'last:1' or a regular expression"
    base: Any = wrapped.base_model
    if base is wrapped:
        return f"{kind} is its own base model, so nothing is outside it; use 'last:1'"
    inside = {name for name, module in wrapped.named_modules(remove_duplicate=False) if module is base}
    prefixes = tuple(f"{name}." for name in inside)
    for names in _places(wrapped).values():
        outer = [name for name in names if not name.startswith(prefixes)]
        if outer:
            within = next(name for name in names if name not in outer)
            return f"the head of {kind} is tied: {outer[0]!r} is {within!r} of its base model; use 'last:1'"
    return f"{kind} has no parameters outside its base model; use 'last:1'"


def _places(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every name of every parameter: more than one where weights are tied."""
    places: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(parameter, []).append(name)
    return places


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
