"""What is not known to train right stops before anything is trained, and names what to use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType, ParallelismConfig
from torch import nn
from torch.optim import SGD
from transformers.debug_utils import DebugOption

from hf_multirate import Multirate, MultirateConfig
from hf_multirate.distributed.unsupported import check_activation_cache, check_supported
from tests.support.runs import CONFIG


SUBSETS = MultirateConfig.random_subsets(3)


def trainer(**settings: Any) -> Any:
    """What is asked of a trainer; a real one cannot be made on this machine for most of these."""
    plugin = SimpleNamespace(fsdp_version=settings.pop("fsdp_version", 2))
    accelerator = SimpleNamespace(
        distributed_type=settings.pop("distributed_type", DistributedType.MULTI_GPU),
        parallelism_config=settings.pop("parallelism_config", None),
        state=SimpleNamespace(fsdp_plugin=plugin),
    )
    found: dict[str, Any] = {
        "is_deepspeed_enabled": False,
        "is_fsdp_enabled": False,
        "is_model_parallel": False,
        "args": SimpleNamespace(n_gpu=1),
        "accelerator": accelerator,
        "model": nn.Linear(2, 2),
    }
    return SimpleNamespace(**(found | settings))


def sharded_model() -> nn.Module:
    model = nn.Linear(2, 2)
    vars(model)["_tp_size"] = 2
    return model


REFUSED: dict[str, dict[str, Any]] = {
    "DeepSpeed.*Use FSDP2": {"is_deepspeed_enabled": True},
    "DataParallel on 2 devices.*accelerate launch": {"args": SimpleNamespace(n_gpu=2)},
    "MEGATRON_LM.*DistributedDataParallel": {"distributed_type": DistributedType.MEGATRON_LM},
    "XLA.*DistributedDataParallel": {"distributed_type": DistributedType.XLA},
    "device_map": {"is_model_parallel": True},
    "sharded when it was loaded": {"is_distributed_loading_by_transformers": True},
    "tensor parallelism": {"model": sharded_model()},
    "tensor, context or sequence": {"parallelism_config": ParallelismConfig(tp_size=2)},
    "FSDP1.*Use FSDP2": {"is_fsdp_enabled": True, "fsdp_version": 1},
}


@pytest.mark.parametrize("match", REFUSED)
def test_refused(match: str) -> None:
    with pytest.raises(NotImplementedError, match=match):
        check_supported(trainer(**REFUSED[match]), CONFIG)


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "FSDP"])
def test_accepted(kind: str) -> None:
    check_supported(trainer(distributed_type=DistributedType[kind], is_fsdp_enabled=kind == "FSDP"), CONFIG)
    check_supported(trainer(parallelism_config=ParallelismConfig(dp_shard_size=2)), CONFIG)


def test_subsets_of_shards_are_refused() -> None:
    check_supported(trainer(), SUBSETS)
    with pytest.raises(NotImplementedError, match="FSDP and random_subset"):
        check_supported(trainer(is_fsdp_enabled=True), SUBSETS)


def test_data_parallel_is_refused_in_a_loop_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(NotImplementedError, match=r"DataParallel.*torchrun"):
        Multirate(MultirateConfig.two_rate("1", idle="drift")).attach(nn.DataParallel(model), optimizer)


def test_parameters_on_several_devices_are_refused_in_a_loop_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(NotImplementedError, match=r"on several devices \(cpu, meta\), which is untested"):
        Multirate(MultirateConfig.two_rate("1")).attach(model, optimizer)
    Multirate(MultirateConfig.off()).attach(model, optimizer).detach()
    model[0].requires_grad_(False)
    Multirate(MultirateConfig.two_rate("1")).attach(model, optimizer).detach()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_model_is_looked_into() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    with Multirate(MultirateConfig.two_rate("1", idle="drift")).attach(
        torch.compile(model, backend="eager"), optimizer
    ) as multirate:
        assert dict(multirate.partition) == {"fast": ("1.weight", "1.bias"), "slow": ("0.weight", "0.bias")}


def cache_arguments(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **({"n_gpu": 1, "torch_compile": False, "neftune_noise_alpha": None, "debug": []} | settings)
    )


NO_CACHE: dict[str, dict[str, Any]] = {
    "DeepSpeed, which gathers": {"is_deepspeed_enabled": True},
    "FSDP, which gathers": {"is_fsdp_enabled": True},
    "DataParallel on 2 devices": {"args": cache_arguments(n_gpu=2)},
    r"torch\.compile, whose code": {"args": cache_arguments(torch_compile=True)},
    "device_map": {"is_model_parallel": True, "args": cache_arguments()},
    "neftune_noise_alpha, which adds other noise": {"args": cache_arguments(neftune_noise_alpha=5.0)},
    "debug='underflow_overflow', because": {"args": cache_arguments(debug=[DebugOption.UNDERFLOW_OVERFLOW])},
}


@pytest.mark.parametrize("match", NO_CACHE)
def test_an_activation_cache_is_refused(match: str) -> None:
    with pytest.raises(NotImplementedError, match=f"activation_cache does not work with .*{match}"):
        check_activation_cache(trainer(**NO_CACHE[match]))
    check_activation_cache(trainer(args=cache_arguments()))
