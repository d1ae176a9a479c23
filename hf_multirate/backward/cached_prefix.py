"""The frozen lower part of a model, whose output the activation cache keeps."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from xxhash import xxh3_128

from hf_multirate.backward.row_keys import array_of
from hf_multirate.model.adapters import adapter_layers, adapter_state
from hf_multirate.model.levels import levels_of
from hf_multirate.model.setup_warnings import drops_layers
from hf_multirate.model.stacks import Stack, find_whole_stack
from hf_multirate.model.unwrap import canonical_name


REMEDY = (
    "Give the lower blocks to a rate group with period='never', as MultirateConfig.two_rate('last:2', 'never') does, "
    "or set requires_grad=False for them. Groups that get a gradient at some steps do not count. Or remove "
    "activation_cache."
)

UNUSED_SETTINGS = (
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip
"""Settings of a model that do not change its blocks."""


@dataclass(frozen=True)
class Prefix:
    """All modules up to the last block below the first parameter that may get a gradient.

    Attributes:
        owner: The module that gets the rows: see `_owner`.
        name: Name of the boundary, the last block of the prefix.
        blocks: The blocks in order, up to the boundary.
        above: The other blocks.
        frozen: Outermost frozen modules besides the blocks. Those that run before the boundary are in the prefix.
        trained_modules: Modules of the owner with parameters that may get a gradient.
        quiet_modules: Modules that run in evaluation mode until the boundary has run: all but the blocks above, the
            owner, and the modules that contain the stack.
        tensors: Parameters and buffers of the prefix by name.
        adapters: Layers of PEFT in the prefix.
    """

    owner: nn.Module
    name: str
    blocks: tuple[nn.Module, ...]
    above: tuple[nn.Module, ...]
    frozen: tuple[nn.Module, ...]
    trained_modules: tuple[nn.Module, ...]
    quiet_modules: tuple[nn.Module, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    adapters: tuple[Any, ...] = field(repr=False)

    @property
    def boundary(self) -> nn.Module:
        """The last block of the prefix."""
        return self.blocks[-1]

    def adapter_state(self) -> str:
        """Which adapters of the prefix are in use; empty without adapters."""
        return adapter_state(self.adapters)

    def versions(self) -> list[tuple[int, int]]:
        """Values that change with most writes to the prefix."""
        return [(tensor._version, tensor.data_ptr()) for tensor in self.tensors.values()]

    def fingerprint(self) -> str:
        """Hash of the weights, the buffers and the configuration of the prefix, and of the place of its end."""
        digest = xxh3_128(f"{type(self.owner).__name__} {len(self.blocks)} {_settings(self.owner)}".encode())
        for name, tensor in self.tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(array_of(tensor).data)
        return digest.hexdigest()

    def require_frozen(self) -> None:
        """Raise `RuntimeError` if a parameter of the prefix requires a gradient."""
        for name, tensor in self.tensors.items():
            if tensor.requires_grad:
                raise RuntimeError(
                    f"{name!r} requires a gradient, but it is below {self.name!r}, whose output the activation cache "
                    "keeps. Unfreeze it in a new run, or set activation_cache=None."
                )


def _settings(owner: nn.Module) -> str:
    if not isinstance(owner, PreTrainedModel):
        return ""
    values = owner.config.to_dict()
    return repr(sorted((key, repr(value)) for key, value in values.items() if key not in UNUSED_SETTINGS))


def find_prefix(model: nn.Module, trained: Collection[nn.Parameter]) -> Prefix:
    """Find the prefix of ``model``.

    Args:
        model: The model without wrapper.
        trained: Parameters that may get a gradient at some step of the run.

    Raises:
        ValueError: the model has no blocks, no block is below all trained parameters, or blocks are dropped at random.
        NotImplementedError: the blocks have cross-attention.
    """
    try:
        stack = find_whole_stack(model)
    except ValueError as error:
        raise ValueError(f"activation_cache needs a model with a stack of blocks: {error}.") from error
    levels, identities = levels_of(model, stack), {id(parameter) for parameter in trained}
    owner = _owner(model, stack, levels)
    _check_owner(owner, stack)
    direct = [
        (levels[module], f"{path}.{key}" if path else key)
        for path, module in model.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if id(parameter) in identities
    ]
    lowest, name = max(direct, default=(0, ""))
    number = len(stack.blocks) - lowest  # the level is 0 above the blocks, and 1 in the last block
    if number < 1:
        raise ValueError(
            f"activation_cache keeps the output of the blocks of {stack.path!r} that get no gradient in the whole "
            f"run, but there is none below {canonical_name(name)!r}. {REMEDY}"
        )
    below = {module for module in owner.modules() if levels[module] >= len(stack.blocks) - number + 1}
    tensors = {
        f"{path}.{key}": tensor
        for path, module in owner.named_modules()
        if module in below
        for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if tensor.dim() or tensor.is_floating_point()  # not the counters of batch norm
    }
    blocks = [stack.module.get_submodule(block) for block in stack.blocks]
    trained_modules = [
        module
        for module in owner.modules()
        if any(id(parameter) in identities for parameter in module.parameters(recurse=False))
    ]
    above = {part for block in blocks[number:] for part in block.modules()}
    quiet = [part for part in owner.modules() if part not in above and stack.module not in set(part.modules())]
    return Prefix(
        owner,
        canonical_name(f"{stack.path}.{stack.blocks[number - 1]}"),
        tuple(blocks[:number]),
        tuple(blocks[number:]),
        tuple(_outermost_frozen(owner, stack, identities)),
        tuple(trained_modules),
        tuple(quiet),
        tensors,
        adapter_layers(below),
    )


def _owner(model: nn.Module, stack: Stack, levels: Mapping[nn.Module, int]) -> nn.Module:
    """The smallest transformers model with the stack and all modules below it that have parameters."""
    lowest = len(stack.blocks) + 1
    below = {part for part in model.modules() if levels[part] == lowest and list(part.parameters(recurse=False))}
    parts = stack.path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = model.get_submodule(".".join(parts[:length]))
        if isinstance(module, PreTrainedModel) and below <= set(module.modules()):
            return module
    return model


def _check_owner(owner: nn.Module, stack: Stack) -> None:
    if not isinstance(owner, PreTrainedModel):
        return
    settings = vars(owner.config)
    decodes = settings.get("is_encoder_decoder") and "decoder" in stack.path
    if decodes or settings.get("add_cross_attention"):
        raise NotImplementedError(
            f"activation_cache does not work with {type(owner).__name__}, whose blocks have cross-attention: their "
            "output depends on that of another stack. Use it with an encoder or a decoder by itself."
        )
    if (dropped := drops_layers(owner)) is not None:
        settings_of_drop = dropped.partition("(")[2].partition(")")[0]
        raise ValueError(
            f"activation_cache does not work with blocks that are dropped at random ({settings_of_drop}). Set it to 0."
        )


def _outermost_frozen(module: nn.Module, stack: Stack, trained: set[int]) -> Iterator[nn.Module]:
    """Outermost modules beside the blocks that have parameters, but no trained ones; and small ones in the stack."""
    blocks = {stack.module.get_submodule(block) for block in stack.blocks}
    for child in module.children():
        if child in blocks:
            continue
        if child is stack.module or any(part is stack.module for part in child.modules()):
            yield from _outermost_frozen(child, stack, trained)
            continue
        parameters = [id(parameter) for parameter in child.parameters()]
        if parameters and not trained.intersection(parameters):
            yield child
