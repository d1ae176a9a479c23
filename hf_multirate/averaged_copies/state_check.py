"""Validate the copies of a checkpoint before they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_multirate.config.shapes import anything, fields, items, table
from hf_multirate.optim.state_check import ADVICE, check_tensor


def check_copies(saved: Any, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], count_: int) -> None:
    """Check that the copies of a checkpoint fit the model.

    Args:
        saved: The state of the copies.
        tensors: Name -> parameter or buffer of the model.
        parameters: Name -> parameter of the model.
        count_: Number of copies, the one in the model included.

    Raises:
        ValueError: the number of copies differs, or they are copies of another model.
    """
    fields({"values": items(table(anything)), "states": items(table(table(anything)))})(saved, "the state")
    values, states = saved["values"], saved["states"]
    same_model = all(copy.keys() == tensors.keys() for copy in values) and len(states) == len(values)
    if not same_model or len(values) != count_ - 1:
        raise ValueError(
            f"the checkpoint has {len(values) + 1} copies, which do not fit the {count_} copies of this model. Resume "
            "with the model and the periods that wrote the checkpoint."
        )
    for i, copy in enumerate(values, 1):
        for name, value in copy.items():
            # Buffers such as masks may contain infinities.
            check_tensor(value, tensors[name], f"{name!r} of copy {i}", finite=name in parameters)
    for i, entries in enumerate(states, 1):
        unknown = sorted(entries.keys() - parameters.keys())
        if unknown:
            raise ValueError(
                f"copy {i} has optimizer state for parameters that this run does not train: {unknown[:3]}. {ADVICE}"
            )


def check_copy_states(states: Sequence[Mapping[str, Any]], present: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the optimizer states of copies fit the present state of the optimizer.

    Args:
        states: For each copy, parameter name -> optimizer state.
        present: Parameter name -> present optimizer state.

    Raises:
        ValueError: a state has other entries, or entries of other shapes.
    """
    for i, entries in enumerate(states, 1):
        for name, state in entries.items():
            expected, where = present.get(name), f"the optimizer state of {name!r} of copy {i}"
            if not expected or not state:
                continue  # the copy has taken no step, or its momentum was reset
            if state.keys() != expected.keys():
                raise ValueError(f"{where} must have the entries {sorted(expected)}, got {sorted(state)}. {ADVICE}")
            for key, value in state.items():
                if isinstance(expected[key], Tensor):
                    check_tensor(value, expected[key], f"{key!r} in {where}")
