"""Check the state of a checkpoint before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_multirate.config.shapes import anything, count, fields, table
from hf_multirate.optim.update_group import LEAST


MISSED = "missed"

ADVICE = "Resume with the model and configuration that wrote it."


def check_state(state: Any) -> None:
    """Check the outermost part of a state of `hf_multirate.Multirate`.

    Raises:
        ValueError: it is no such state.
    """
    table(anything)(state, "the state")
    entries = fields({"displacement": table(anything), "level": table(count(0, LEAST))})
    entries({key: value for key, value in state.items() if key != MISSED}, "the state")
    table(count(1, 1))(state.get(MISSED, {}), MISSED)


def check_drift(state: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Tensor]) -> None:
    """Compare the drift of a checkpoint with the parameters, by name.

    Raises:
        ValueError: an entry belongs to no parameter, or does not fit its parameter.
    """
    check_state(state)
    unknown = sorted({name for entries in state.values() for name in entries} - set(parameters))
    if unknown:
        raise ValueError(
            f"the checkpoint has the drift of parameters that are not trained here, e.g. {unknown[:3]}. {ADVICE}"
        )
    for name, value in state["displacement"].items():
        check_tensor(value, parameters[name], f"the displacement of {name!r}")


def check_tensor(value: Any, like: Tensor, where: str, *, finite: bool = True) -> None:
    """Require a tensor of the shape and the kind of ``like``.

    Raises:
        ValueError: it is something else, or has values that are not ``finite``.
    """
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested
    if not dense or value.is_quantized or value.is_meta:
        raise ValueError(f"{where} must be a dense tensor, got {type(value).__name__}. {ADVICE}")
    if value.shape != like.shape:
        raise ValueError(f"{where} must have the shape {tuple(like.shape)}, got {tuple(value.shape)}. {ADVICE}")
    if (value.is_floating_point(), value.is_complex()) != (like.is_floating_point(), like.is_complex()):
        raise ValueError(f"{where} must have numbers as in {like.dtype}, got {value.dtype}. {ADVICE}")
    if finite and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{where} has values that are not finite.")
