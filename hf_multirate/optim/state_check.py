"""What a state of a checkpoint has to be before anything of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_multirate.config.shapes import anything, count, fields, items, table
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


def check_movement(state: Mapping[str, Mapping[str, Any]], parameters: Mapping[str, Tensor]) -> None:
    """Hold the drift of a checkpoint against the parameters by name.

    Raises:
        ValueError: an entry belongs to no parameter, or is no drift of its parameter.
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


def check_copies(saved: Any, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], count_: int) -> None:
    """Hold the copies of a checkpoint, ``count_`` with the one in the model, against the tensors of that.

    Raises:
        ValueError: there are more or fewer of them, or they are copies of another model.
    """
    fields({"values": items(table(anything)), "states": items(table(table(anything)))})(saved, "the state")
    values, states = saved["values"], saved["states"]
    alike = all(copy.keys() == tensors.keys() for copy in values) and len(states) == len(values)
    if not alike or len(values) != count_ - 1:
        raise ValueError(
            f"the checkpoint has {len(values) + 1} copies, of this model or another one, and here are "
            f"{count_}: resume with the model and the periods that wrote it."
        )
    for i, copy in enumerate(values, 1):
        for name, value in copy.items():
            # Buffers may hold infinities: masks do.
            check_tensor(value, tensors[name], f"{name!r} of copy {i}", finite=name in parameters)
    for i, entries in enumerate(states, 1):
        unknown = sorted(entries.keys() - parameters.keys())
        if unknown:
            raise ValueError(f"copy {i} has optimizer state of parameters not trained here: {unknown[:3]}. {ADVICE}")


def check_copy_states(states: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold optimizer states of copies against those that the optimizer has of the copy in the model, by parameter.

    Raises:
        ValueError: one has other entries, or entries of other shapes.
    """
    for i, entries in enumerate(states, 1):
        for name, state in entries.items():
            here, where = known.get(name), f"the optimizer state of {name!r} of copy {i}"
            if not here or not state:
                continue  # a copy that has taken no step, or whose momentum was reset
            if state.keys() != here.keys():
                raise ValueError(f"{where} must have the entries {sorted(here)}, got {sorted(state)}. {ADVICE}")
            for key, value in state.items():
                if isinstance(here[key], Tensor):
                    check_tensor(value, here[key], f"{key!r} in {where}")
