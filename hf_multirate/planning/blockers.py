"""What keeps a setting from saving time, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from hf_multirate.checkpointing import checkpointing_modules
from hf_multirate.config import MultirateConfig
from hf_multirate.cost import boundary, layers_of, step_cost


NEARLY_ALL = 0.7
"""Share of a full step's work beyond which a fast-only step saves little."""


def blockers(model: nn.Module, config: MultirateConfig, partition: Mapping[str, Sequence[str]]) -> list[str]:
    """Reasons that can be seen without running anything."""
    if config.schedule.cycle == 1:
        return ["every step is a full step"]
    found = []
    fast = {key for group in config.groups if group.gradient_period == 1 for key in partition[group.name]}
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    low = sorted(fast & embeddings)
    if low:
        found.append(f"the embedding {low[0]!r} is in the fast group: backward goes to the bottom at every step")
    layers = layers_of(model)
    everything = {key for keys in partition.values() for key in keys}
    share = step_cost(layers, fast) / (step_cost(layers, everything) or 1.0)
    lowest = boundary(layers, fast)
    if not low and share > NEARLY_ALL:
        what = "adapter" if "lora_" in f"{lowest}" else "fast parameter"
        found.append(
            f"a fast-only step costs {share:.2f} of a full one: the lowest {what} is {lowest!r}. Name fewer blocks, "
            "as in 'last:1'"
        )
    if any(vars(module).get("gradient_checkpointing") for module in checkpointing_modules(model)):
        found.append("activation checkpointing runs the forward pass of full steps twice; fast-only steps do not")
    return found
