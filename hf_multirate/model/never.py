"""Parameters that never get a gradient: ``requires_grad`` is off for a whole run, and restored after it.

The analysis of a model counts them as trainable, so that presets choose the same blocks before and during the run.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from hf_multirate.model.unwrap import canonical_parameters


_switched_off = WeakTensorKeyDictionary()
"""The parameters that `switch_off` has switched off."""


def is_trainable(parameter: nn.Parameter) -> bool:
    """Whether ``parameter`` requires a gradient, or would without `switch_off`."""
    return parameter.requires_grad or parameter in _switched_off


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters of ``model``, in the order of ``named_parameters()``."""
    return [name for name, parameter in canonical_parameters(model).items() if is_trainable(parameter)]


def switch_off(parameters: Iterable[nn.Parameter]) -> bool:
    """Switch ``requires_grad`` off for ``parameters``, and remove their gradients.

    Returns:
        Whether a parameter was on.
    """
    switched = False
    for parameter in parameters:
        switched = switched or parameter.requires_grad
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer that holds the parameter would apply it
        _switched_off[parameter] = True
    return switched


def switch_on(parameters: Iterable[nn.Parameter]) -> None:
    """Switch ``requires_grad`` on again for the parameters among ``parameters`` that `switch_off` has switched off."""
    for parameter in parameters:
        if parameter in _switched_off:
            del _switched_off[parameter]
            parameter.requires_grad_(True)
