"""Checks of attention kernels: gradients of a fast step are those of a full step, for each kernel."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.cells import Bench
from benchmarks.gpu.checks import Outcome, outcome, small_network
from benchmarks.gpu.kinds import SETTINGS
from benchmarks.gpu.place import SkippedError, require_cuda, require_precision
from hf_multirate import Multirate


KERNELS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
NO_KERNEL = ("No available kernel", "No viable backend")
CLOSE = 0.02
"""Largest relative difference of gradients; kernels add in an order of their own, in bfloat16."""

Gradients = dict[str, torch.Tensor]


def gradients(model: Any, batch: dict[str, torch.Tensor], step: int, place: Any) -> Gradients:
    """Gradients of the parameters that are live at ``step``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    with Multirate(SETTINGS["last:1"]).attach(model, optimizer) as controller:
        controller.begin_step(step)
        with place.autocast("bf16"):
            loss = model(**batch).loss
        loss.backward()
        found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.zero_grad()
    return found


def compare(full: Gradients, fast: Gradients) -> Outcome:
    """Whether a fast step has fewer gradients than a full one, and equal ones."""
    gaps = [float((fast[name] - full[name]).norm() / full[name].norm().clamp_min(1e-12)) for name in fast]
    text = f"{len(fast)} of {len(full)} gradients at a fast step, relative difference at most {max(gaps):.1e}"
    return outcome(0 < len(fast) < len(full) and max(gaps) < CLOSE, text)


def check_kernel(kernel: str, bench: Bench) -> Outcome:
    """Full and fast gradients with one kernel of scaled_dot_product_attention."""
    require_precision(bench.place, "bf16")
    network = small_network(bench, "llama")
    model, batch = network.make(bench.place.device), network.one_batch(bench.place.device)
    try:
        with sdpa_kernel(KERNELS[kernel]):
            full, fast = (gradients(model, batch, step, bench.place) for step in (0, 1))
    except RuntimeError as error:
        if any(words in str(error) for words in NO_KERNEL):
            raise SkippedError(f"no {kernel} kernel for this device and shape") from error
        raise
    return compare(full, fast)


def check_flash_attention_2(bench: Bench) -> Outcome:
    """The same with the package flash_attn."""
    require_cuda(bench.place)
    if importlib.util.find_spec("flash_attn") is None:
        raise SkippedError("the package flash_attn is not installed")
    network = small_network(bench, "llama")
    model = network.make(bench.place.device)
    model.set_attn_implementation("flash_attention_2")
    batch = network.one_batch(bench.place.device)
    full, fast = (gradients(model, batch, step, bench.place) for step in (0, 1))
    return compare(full, fast)
