"""Validate the controller state of a checkpoint before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_multirate.config.shapes import anything, count, fields, table
from hf_multirate.optim.update_group import MAX_LEVEL


MISSED = "missed"

ADVICE = "Resume with the model and configuration that wrote it."


def check_state(state: Any) -> None:
    """Check the keys of a state of `hf_multirate.Multirate`.

    Raises:
        ValueError: ``state`` has another structure.
    """
    table(anything)(state, "the state")
    entries = fields({"displacement": table(anything), "level": table(count(0, MAX_LEVEL))})
    entries({key: value for key, value in state.items() if key != MISSED}, "the state")
    table(count(1, 1))(state.get(MISSED, {}), MISSED)


def check_drift(state: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Tensor]) -> None:
    """Check that the drift state of a checkpoint fits ``parameters`` (name -> parameter).

    Raises:
        ValueError: an entry has no parameter, or another shape or kind of dtype than its parameter.
    """
    check_state(state)
    unknown = sorted({name for entries in state.values() for name in entries} - set(parameters))
    if unknown:
        raise ValueError(
            f"the checkpoint has drift state for parameters that this run does not train, e.g. {unknown[:3]}. {ADVICE}"
        )
    for name, value in state["displacement"].items():
        check_tensor(value, parameters[name], f"the displacement of {name!r}")


def check_tensor(value: Any, like: Tensor, where: str, *, finite: bool = True) -> None:
    """Check that ``value`` is a dense tensor with the shape and the kind of dtype of ``like``.

    Args:
        value: The value to check.
        like: A tensor with the required shape and kind of dtype.
        where: Description of the value in errors.
        finite: Whether infinite values and NaN are errors.

    Raises:
        ValueError: the check failed.
    """
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    if not dense or value.is_quantized or value.is_meta:
        raise ValueError(f"{where} must be a dense tensor, got {type(value).__name__}. {ADVICE}")
    if value.shape != like.shape:
        raise ValueError(f"{where} must have the shape {tuple(like.shape)}, got {tuple(value.shape)}. {ADVICE}")
    if (value.is_floating_point(), value.is_complex()) != (like.is_floating_point(), like.is_complex()):
        raise ValueError(f"{where} must have numbers as in {like.dtype}, got {value.dtype}. {ADVICE}")
    if finite and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{where} has values that are not finite. Resume from an earlier checkpoint.")
