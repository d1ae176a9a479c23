"""A check has passed or failed, with a number or a reason; and what several checks share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from benchmarks.gpu.cells import Bench
from benchmarks.gpu.models import Network
from benchmarks.gpu.training import trainer_for
from hf_multirate import MultirateConfig


Outcome = dict[str, Any]
Weights = dict[str, Tensor]


def outcome(passed: bool, text: str) -> Outcome:
    """The values of a check."""
    return {"passed": bool(passed), "text": text}


def small_network(bench: Bench, family: str = "bert") -> Network:
    """A network of four blocks, wide enough for all kernels."""
    if bench.tiny:
        return bench.network({"bert": "BERT-base", "llama": "Llama 0.5 B"}[family])
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    more = {"num_key_value_heads": 4} if family == "llama" else {}
    return Network(f"small {family}", family, 8, 64, sizes | more, 1000)


def weights(trainer: Trainer) -> Weights:
    """Copies of parameters and buffers on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in trainer.model.state_dict().items()}


def trained(
    bench: Bench, network: Network, config: MultirateConfig | None, resume: str | None = None, **settings: Any
) -> Weights:
    """Weights after a run; settings as in `benchmarks.gpu.training.trainer_for`."""
    with trainer_for(bench, network, config, **settings) as trainer:
        trainer.train(resume_from_checkpoint=resume)
        found = weights(trainer)
    bench.place.free()
    return found


def difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights; infinite if one is not a number."""
    gaps = [float((one[name].double() - other[name].double()).abs().max()) for name in one]
    return float("inf") if any(map(math.isnan, gaps)) else max(gaps)


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> Outcome:
    """Whether two sets of weights are equal, bit for bit."""
    if one.keys() != other.keys():
        return outcome(False, f"{what}: the weights have other names")
    unequal = [name for name in one if not torch.equal(one[name], other[name])]
    if not unequal:
        return outcome(True, f"{what}: all {len(one)} tensors are equal")
    largest = difference(one, other)
    return outcome(False, f"{what}: {len(unequal)} of {len(one)} tensors differ, by at most {largest:.2e}")


def both(*found: Outcome) -> Outcome:
    """One outcome of several."""
    return outcome(all(one["passed"] for one in found), "; ".join(one["text"] for one in found))
