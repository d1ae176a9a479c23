"""Find models that drop whole layers at random while they train."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def drops_layers(model: nn.Module) -> str | None:
    """What to say of a model whose configuration drops layers (``layerdrop``); None if it does not."""
    rates = {
        key: value
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        for key, value in vars(module.config).items()
        if "layerdrop" in key.replace("_", "") and isinstance(value, (int, float)) and value > 0
    }
    if not rates:
        return None
    told = ", ".join(f"{key}={value}" for key, value in rates.items())
    return (
        f"the configuration of the model drops layers at random ({told}): a slow layer that is dropped at its turn "
        "gets no gradient and stays as it is until the next one. Set it to 0 for a gradient at each turn."
    )
