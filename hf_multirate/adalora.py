"""AdaLoRA of PEFT wants the gradients of all its adapters at every step."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from hf_multirate.config import MultirateConfig


def refuse_adalora(model: nn.Module, config: MultirateConfig, partition: Mapping[str, Sequence[str]]) -> None:
    """Refuse AdaLoRA where some of its adapters have no gradient at fast steps.

    Raises:
        NotImplementedError: that is so. ``update_and_allocate`` multiplies each adapter by its gradient.
    """
    peft: Any = sys.modules.get("peft")  # slow to import, and without it there is no such model
    if peft is None or not config.prunes or not any(isinstance(part, peft.AdaLoraModel) for part in model.modules()):
        return
    idle = [group for group in config.groups if group.gradient_period > 1 or config.budget is not None]
    slow = [name for group in idle for name in partition[group.name] if "lora_" in name]
    if slow:
        raise NotImplementedError(
            "AdaLoRA needs the gradients of all its adapters at every step, for update_and_allocate() to rank them, "
            f"and {len(slow)} adapters would have none at fast steps, e.g. {slow[:2]}. Put all adapters into a group "
            "with period 1 (the pattern 'lora_'), or use another adapter, such as LoRA."
        )
