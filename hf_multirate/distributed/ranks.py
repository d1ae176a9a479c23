"""Compare processes with each other: what should be the same and is not stops the run, by name."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

import torch
import torch.distributed as dist
from torch import Tensor


CHUNK = 1 << 20
"""Elements that are hashed together, to bound what the debug check needs of memory."""

SHOWN = 160
"""Characters of a text in an error."""


def check_facts(facts: Mapping[str, str], group: dist.ProcessGroup) -> None:
    """Raise `RuntimeError` if processes of ``group`` differ in one of ``facts``, which have the same keys in all."""
    gathered: list[dict[str, str]] = [{} for _ in range(group.size())]
    dist.all_gather_object(gathered, dict(facts), group=group)
    for key in facts:
        values = [theirs[key] for theirs in gathered]
        if len(set(values)) > 1:
            other = next(rank for rank, value in enumerate(values) if value != values[0])
            first, second = _difference(values[0], values[other])
            raise RuntimeError(
                f"processes disagree about {key}: process 0 has {first}, process {other} has {second}. "
                "Give every process the same configuration, model and checkpoint."
            )


def _difference(one: str, other: str) -> list[str]:
    """Both texts, of long ones the part in which they begin to differ."""
    alike = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, alike - SHOWN // 2)
    return [("..." if start else "") + shorten(text[start:], SHOWN, placeholder="...") for text in (one, other)]


def check_weights(parameters: Mapping[str, Tensor], group: dist.ProcessGroup, step: int) -> None:
    """Raise `RuntimeError` if processes of ``group`` differ in a bit of ``parameters``, which each holds whole."""
    hashes = torch.stack([_hash(parameter) for parameter in parameters.values()])
    extremes = torch.stack([hashes, -hashes])
    dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
    differ = [name for name, (high, low) in zip(parameters, extremes.T.tolist(), strict=True) if high != -low]
    if differ:
        raise RuntimeError(
            f"before step {step} the weights differ between processes: {differ[0]!r} is the first of {len(differ)} of "
            f"{len(parameters)} parameters. Something changes weights or gradients in one process alone, such as a "
            "callback on rank 0, or a parameter that DistributedDataParallel does not own."
        )


@torch.no_grad()
def _hash(parameter: Tensor) -> Tensor:
    """Sum of the bits of the elements, each times its place, modulo 2**64."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = parameter.detach().contiguous().view(integers[parameter.element_size()]).view(-1)
    found = torch.zeros((), dtype=torch.int64, device=parameter.device)
    for start in range(0, bits.numel(), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        found += (part * torch.arange(start + 1, start + 1 + part.numel(), device=part.device)).sum()
    return found
