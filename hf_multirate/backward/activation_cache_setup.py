"""Set-up of the activation cache of a run: its checks, the prefix of the model, and the store."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.backward.activation_store import GIGABYTE, ActivationStore, MemoryStore
from hf_multirate.backward.activation_store_disk import DiskStore
from hf_multirate.backward.cached_prefix import Prefix, find_prefix
from hf_multirate.config.config import MultirateConfig
from hf_multirate.distributed.unsupported import check_activation_cache_of_model
from hf_multirate.model.unwrap import ddp_wrappers, unwrap_model


def activation_cache_for(
    config: MultirateConfig, model: nn.Module, trained: Collection[nn.Parameter], folder: str | None
) -> ActivationCache | None:
    """The activation cache of a run; None if the configuration has none.

    Args:
        config: The configuration.
        model: The model, possibly in a wrapper.
        trained: Parameters that may get a gradient at some step.
        folder: Folder of a cache on disk, unless the configuration names one.

    Raises:
        ValueError: there is no frozen prefix, or the folder cannot be used.
        NotImplementedError: the model or its wrapper is not supported.
    """
    if config.activation_cache is None:
        return None
    check_activation_cache_of_model(model)
    prefix = find_prefix(unwrap_model(model), trained)
    if ddp_wrappers(model) and any(tensor.requires_grad for tensor in prefix.tensors.values()):
        raise NotImplementedError(
            "activation_cache does not work in a stage with several processes: DistributedDataParallel waits for the "
            "gradients of groups that rest for a stage. Set activation_cache=None in the stages, or train in one "
            "process."
        )
    return ActivationCache(prefix, _store(config, prefix, config.activation_cache_dir or folder))


def _store(config: MultirateConfig, prefix: Prefix, folder: str | None) -> ActivationStore:
    limit = config.activation_cache_gb * GIGABYTE
    if config.activation_cache == "memory":
        return MemoryStore(limit)
    if folder is None:
        raise ValueError(
            "activation_cache='disk' needs a folder in a custom training loop. Set activation_cache_dir, or use "
            "activation_cache='memory'."
        )
    name = f"{type(prefix.owner).__name__} up to {prefix.name}"
    return DiskStore(folder, limit, {"name": name, "fingerprint": prefix.fingerprint()})
