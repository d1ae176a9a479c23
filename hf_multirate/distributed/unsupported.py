"""Errors for unsupported and untested distributed set-ups, raised before training, with the alternative."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.debug_utils import DebugOption

from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.unwrap import is_compiled


if TYPE_CHECKING:
    from transformers import Trainer

PROCESSES = "Use one process for each device with DistributedDataParallel or FSDP2 (accelerate launch, or torchrun)."
UNTESTED = f"which is untested. {PROCESSES}"
REPLICAS = f"because its replicas have no parameters whose requires_grad could be switched off. {PROCESSES}"
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel): it is deprecated, its flat parameters may mix rate groups, and it is untested. "
    "Use FSDP2: version 2 in fsdp_config, fsdp_version 2 in the file of accelerate config, or fully_shard()."
)

DDP_ONLY = PROCESSES.replace(" or FSDP2", "")
SHARDED_PREFIX = f"which gathers the parameters of all blocks at every step. {DDP_ONLY}"
COMPILED = "torch.compile, whose code always runs the whole model. Set torch_compile=False."
NEFTUNE = "neftune_noise_alpha, which adds other noise to the embeddings at every pass. Set neftune_noise_alpha=None."
DEBUGGER = (
    "debug='underflow_overflow', because modules that do not run return tensors without values (NaN). Remove it from "
    "debug."
)


def raise_unsupported(reason: str) -> NoReturn:
    """Raise `NotImplementedError` with the unsupported set-up and the alternative in ``reason``."""
    raise NotImplementedError(f"multirate training does not work with {reason}")


def check_supported(trainer: Trainer, config: MultirateConfig) -> None:
    """Check that the distributed set-up of ``trainer`` is supported.

    Raises:
        NotImplementedError: the set-up is unsupported or untested; the error names an alternative.
    """
    reason = _devices(trainer) or _model(trainer)
    if reason is not None:
        raise_unsupported(reason)
    if trainer.is_fsdp_enabled:
        if trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise_unsupported(FSDP1)
        raise_if_random_subsets(config)


def check_head_start(trainer: Trainer) -> None:
    """Check that the distributed set-up of ``trainer`` allows a head start.

    Raises:
        NotImplementedError: parameters or layers are spread over several devices.
    """
    reason = _model(trainer)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        kind = "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP"
        reason = f"{kind}, which may shard the head. {PROCESSES.replace(' or FSDP2', '')}"
    if reason is not None:
        raise NotImplementedError(f"head_start does not work with {reason} Or set head_start=0.")


def check_activation_cache(trainer: Trainer) -> None:
    """Check that the set-up of ``trainer`` allows an activation cache.

    Raises:
        NotImplementedError: parameters or layers are spread over several devices, the model is compiled, embeddings
            get noise, or a debugger stops at values that are not finite.
    """
    reason = _model(trainer)
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        reason = f"{'DeepSpeed' if trainer.is_deepspeed_enabled else 'FSDP'}, {SHARDED_PREFIX}"
    elif trainer.args.n_gpu > 1:
        reason = f"DataParallel on {trainer.args.n_gpu} devices of one process. {DDP_ONLY}"
    elif trainer.args.torch_compile:
        reason = COMPILED
    elif trainer.args.neftune_noise_alpha is not None:
        reason = NEFTUNE
    elif DebugOption.UNDERFLOW_OVERFLOW in trainer.args.debug:
        reason = DEBUGGER
    if reason is not None:
        _refuse_cache(reason)


def check_activation_cache_of_model(model: nn.Module) -> None:
    """Check that the wrappers of ``model`` allow an activation cache.

    Raises:
        NotImplementedError: the model is sharded, replicated in one process, or compiled.
    """
    if is_compiled(model):
        _refuse_cache(COMPILED)
    wrapper = _splitting_wrapper(model)
    if wrapper is not None:
        _refuse_cache(f"FSDP, {SHARDED_PREFIX}" if wrapper == "FSDP" else f"{wrapper}. {DDP_ONLY}")


def check_head_start_of_model(model: nn.Module) -> None:
    """Check that the wrappers of ``model`` allow a head start.

    Raises:
        NotImplementedError: the model is sharded, or replicated in one process.
    """
    wrapper = _splitting_wrapper(model)
    if wrapper is not None:
        raise NotImplementedError(
            f"head_start does not work with a model in {wrapper}. Call it before the model is wrapped, or use "
            "DistributedDataParallel."
        )


def check_whole_parameters(model: nn.Module) -> None:
    """Check that no wrapper of ``model`` shards or replicates its parameters, which averaged copies exchange.

    Raises:
        NotImplementedError: there is such a wrapper.
    """
    wrapper = _splitting_wrapper(model)
    if wrapper is not None:
        raise NotImplementedError(
            f"averaged copies do not work with {wrapper}: they need unsharded parameters and one device per process. "
            f"{DDP_ONLY}"
        )


def _splitting_wrapper(model: nn.Module) -> str | None:
    """The kind of wrapper that shards the parameters of ``model`` or replicates them; None without one."""
    for module in model.modules():
        if isinstance(module, (FSDPModule, FullyShardedDataParallel)):
            return "FSDP"
        if isinstance(module, nn.DataParallel):
            return "DataParallel"
    return None


def _refuse_cache(reason: str) -> NoReturn:
    raise NotImplementedError(f"activation_cache does not work with {reason} Or set activation_cache=None.")


def raise_if_random_subsets(config: MultirateConfig) -> None:
    """Raise `NotImplementedError` if ``config`` has random subsets, which need unsharded parameters."""
    if any(group.random_subset is not None for group in config.groups):
        raise_unsupported(
            "FSDP and random_subset together: random subsets are drawn in full parameters, but FSDP shards them. Use "
            "DistributedDataParallel, or rate groups without random_subset."
        )


def _devices(trainer: Trainer) -> str | None:
    if trainer.is_deepspeed_enabled:
        return (
            "DeepSpeed: its ZeRO optimizers treat a missing gradient as zero, so they would update and decay idle "
            "parameters. Use FSDP2 (fsdp_version 2), which shards the same states, or DistributedDataParallel."
        )
    if trainer.args.n_gpu > 1:
        return (
            f"DataParallel on {trainer.args.n_gpu} devices of one process, {REPLICAS} To use one device only, set "
            "CUDA_VISIBLE_DEVICES=0."
        )
    kind = trainer.accelerator.distributed_type
    tested = kind in (DistributedType.NO, DistributedType.FSDP) or kind.value.startswith("MULTI_")
    return None if tested else f"distributed_type {kind.value}, {UNTESTED}"


def _model(trainer: Trainer) -> str | None:
    if trainer.is_model_parallel:
        return f"a model that is spread over devices by its device_map, {UNTESTED}"
    # transformers 5 only: from_pretrained() can set up tensor, expert and sharded data parallelism.
    if vars(trainer).get("is_distributed_loading_by_transformers", False):
        return f"a model that was sharded when it was loaded (distributed_config), {UNTESTED}"
    if (vars(trainer.model).get("_tp_size") or 1) > 1:
        return f"tensor parallelism, {UNTESTED}"
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        return f"tensor, context or sequence parallelism ({parallelism}), {UNTESTED}"
    return None
