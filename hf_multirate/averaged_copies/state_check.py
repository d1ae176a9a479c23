"""Check the copies of a checkpoint before any of them is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_multirate.config.shapes import anything, fields, items, table
from hf_multirate.optim.state_check import ADVICE, check_tensor


def check_copies(saved: Any, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], count_: int) -> None:
    """Compare the copies of a checkpoint, ``count_`` with the one in the model, with the tensors of the model.

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
    """Compare optimizer states of copies with those of the copy in the model, by parameter.

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
