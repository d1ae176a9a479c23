"""Reasons for a low speed-up, as texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hf_multirate.backward.gradient_checkpointing import checkpointing_modules
from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.cost_model import boundary, layers_of, step_cost
from hf_multirate.model.partition import Partition


EXPENSIVE_FAST_STEP = 0.7
"""Cost of a fast step, as a share of a full step, above which it is listed as a blocker."""


def blockers(model: nn.Module, config: MultirateConfig, partition: Partition) -> list[str]:
    """Reasons for a low speed-up that follow from the model and the configuration, as texts."""
    if config.schedule.cycle == 1 and not partition.never:
        return ["every step is a full step"]
    reasons = []
    fast = {key for group in config.groups if group.gradient_period == 1 for key in partition[group.name]}
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    fast_embeddings = sorted(fast & embeddings)
    if fast_embeddings:
        reasons.append(
            f"the embedding {fast_embeddings[0]!r} is in the fast group: backward runs to the bottom at every step"
        )
    layers = layers_of(model)
    trainable = {key for keys in partition.values() for key in keys} | set(partition.never_names)
    share = step_cost(layers, fast) / (step_cost(layers, trainable) or 1.0)
    lowest = boundary(layers, fast)
    if not fast_embeddings and share > EXPENSIVE_FAST_STEP:
        kind = "adapter" if "lora_" in f"{lowest}" else "fast parameter"
        reasons.append(
            f"a fast step costs {share:.2f} of a full step: the lowest {kind} is {lowest!r}. Make fewer blocks fast, "
            "as in 'last:1'"
        )
    if any(vars(module).get("gradient_checkpointing") for module in checkpointing_modules(model)):
        reasons.append("gradient checkpointing runs the forward pass twice at full steps, but once at fast steps")
    return reasons


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Context manager that collects the warnings of this package instead of logging them."""
    messages: list[str] = []
    logger = logging.getLogger("hf_multirate")

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, propagates = Collect(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
