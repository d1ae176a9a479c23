"""What is not known to train right is refused before anything is trained, with what to use instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from accelerate.utils import DistributedType

from hf_multirate.config.config import MultirateConfig


if TYPE_CHECKING:
    from transformers import Trainer

PROCESSES = "Use one process for each device with DistributedDataParallel or FSDP2 (accelerate launch, or torchrun)."
REPLICAS = f"whose replicas have no parameters to switch off. {PROCESSES}"
FSDP1 = (
    "FSDP1 (FullyShardedDataParallel), which is deprecated, goes wrong where a flat parameter mixes rate groups, and "
    "was never tried. Use FSDP2: version 2 in fsdp_config, fsdp_version 2 in the file of accelerate config, or "
    "fully_shard()."
)


def raise_unsupported(reason: str) -> NoReturn:
    """Raise `NotImplementedError`."""
    raise NotImplementedError(f"multirate training does not work with {reason}")


def check_supported(trainer: Trainer, config: MultirateConfig) -> None:
    """Raise `NotImplementedError` if the run of ``trainer`` is distributed in a way that is not known to be right."""
    reason = _devices(trainer) or _model(trainer)
    if reason is not None:
        raise_unsupported(reason)
    if trainer.is_fsdp_enabled:
        if trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise_unsupported(FSDP1)
        raise_if_random_subsets(config)


def raise_if_random_subsets(config: MultirateConfig) -> None:
    """Raise `NotImplementedError` if ``config`` cannot train sharded parameters."""
    if any(group.random_subset is not None for group in config.groups):
        raise_unsupported(
            "FSDP and random_subset together: random subsets are drawn in whole parameters, and FSDP shards them. Use "
            "DistributedDataParallel, or rate groups without a random subset."
        )


def _devices(trainer: Trainer) -> str | None:
    if trainer.is_deepspeed_enabled:
        return (
            "DeepSpeed, whose ZeRO optimizers take a missing gradient for zero and step and decay what is idle. Use "
            "FSDP2 (fsdp_version 2), which shards the same, or DistributedDataParallel."
        )
    if trainer.args.n_gpu > 1:
        return (
            f"DataParallel on {trainer.args.n_gpu} devices of one process, {REPLICAS} For one device of several, set "
            "CUDA_VISIBLE_DEVICES=0."
        )
    kind = trainer.accelerator.distributed_type
    tested = kind in (DistributedType.NO, DistributedType.FSDP) or kind.value.startswith("MULTI_")
    return None if tested else f"distributed_type {kind.value}, which was never tried. {PROCESSES}"


def _model(trainer: Trainer) -> str | None:
    if trainer.is_model_parallel:
        return f"a model that is spread over devices by its device_map, which was never tried. {PROCESSES}"
    # Since transformers 5: tensor, expert and sharded data parallelism that from_pretrained() sets up.
    if vars(trainer).get("is_distributed_loading_by_transformers", False):
        return f"a model that was sharded when it was loaded (distributed_config), which was never tried. {PROCESSES}"
    if (vars(trainer.model).get("_tp_size") or 1) > 1:
        return f"tensor parallelism, which was never tried. {PROCESSES}"
    parallelism = trainer.accelerator.parallelism_config
    if parallelism is not None and parallelism.non_data_parallel_size > 1:
        return f"tensor, context or sequence parallelism ({parallelism}), which was never tried. {PROCESSES}"
    return None
