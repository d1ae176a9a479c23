"""Layers of PEFT, whose output depends on the adapters in use."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn


def adapter_layers(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """The layers of PEFT among ``modules``, with adapters or with copies of ``modules_to_save``."""
    peft: Any = sys.modules.get("peft")  # not imported here: peft is optional, and slow to import
    if peft is None:
        return ()
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.ModulesToSaveWrapper)
    return tuple(module for module in modules if isinstance(module, kinds))


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of adapters and copies of ``modules_to_save`` in ``model``, without those of the base model."""
    return [
        parameter
        for layer in adapter_layers(model.modules())
        for name, parameter in layer.named_parameters()
        if not name.startswith(("base_layer.", "original_module."))
    ]


def adapter_state(layers: Iterable[Any]) -> str:
    """Which adapters each of ``layers`` uses, and with which factors; empty without layers.

    ``disable_adapter()``, ``set_adapter()`` and ``lora_alpha`` change it, and no weight.
    """
    states = [(layer.disable_adapters, list(layer.active_adapters), vars(layer).get("scaling")) for layer in layers]
    return repr(states) if states else ""
