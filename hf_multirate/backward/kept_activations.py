"""Outputs of a module that are kept, so that what follows it can run again without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.utils import recursively_apply
from torch import Tensor, nn

from hf_multirate.model.hooks import forward_replaced


CACHE = "past_key_values"
"""Output of a decoder that no head reads; it is as large as all layers together."""


class KeptOutputs:
    """Outputs of a module for some batches, to be returned instead of calling it again.

    A batch may call the module several times, as a loss on pairs does: its outputs are returned in the same order.

    Args:
        module: The module. Only its ``forward`` is replaced, so its hooks run in both cases.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._outputs: list[list[Any]] = []

    def __len__(self) -> int:
        return len(self._outputs)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A context for the loss of one more batch, in which the outputs of the module are kept.

        Raises:
            ValueError: the module was not called.
        """
        forward, outputs = self._module.forward, []

        def keep(*args: Any, **kwargs: Any) -> Any:
            output = _without_cache(forward(*args, **kwargs))
            outputs.append(recursively_apply(Tensor.clone, _detached(output)))
            return output

        with forward_replaced(self._module, keep):
            yield
        if not outputs:
            raise ValueError(
                f"the loss of a batch does not call {type(self._module).__name__}, the base model, so there is no "
                "output to keep. Set head_start=0."
            )
        self._outputs.append(outputs)

    @contextmanager
    def returned(self, batch: int) -> Iterator[None]:
        """A context for the loss of a kept batch, in which the module returns its kept outputs.

        Args:
            batch: Number of the batch, from 0.

        Raises:
            ValueError: the module is called more often than before.
        """
        outputs = iter(self._outputs[batch])

        def replay(*args: Any, **kwargs: Any) -> Any:
            del args, kwargs
            try:
                # Copied, because a head may change its input in place.
                return recursively_apply(Tensor.clone, next(outputs))
            except StopIteration:
                raise ValueError(
                    f"the loss of the same batch calls {type(self._module).__name__} a varying number of times, so "
                    "its kept outputs do not fit. Set head_start=0."
                ) from None

        with forward_replaced(self._module, replay):
            yield


def _detached(output: Any) -> Any:
    return recursively_apply(Tensor.detach, output)


def _without_cache(output: Any) -> Any:
    if isinstance(output, Mapping) and output.get(CACHE) is not None:
        return type(output)(**{key: value for key, value in output.items() if key != CACHE})
    return output
