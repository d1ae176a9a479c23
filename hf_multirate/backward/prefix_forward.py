"""Forward passes of a cached prefix: one that runs and records it, and one that returns its kept output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hf_multirate.backward.cached_prefix import Prefix
from hf_multirate.backward.stub_forward import Format, format_of
from hf_multirate.model.hooks import forward_replaced


IMAGE_DIM = 4


@dataclass
class Recording:
    """What the modules of a prefix returned in a pass.

    Attributes:
        formats: Module -> the format of each of its calls.
        tail: Size of the kept output of a row.
        output: The output of the boundary, until it is released; None before the boundary has run.
        device: Device of the output.
        channels_last: Whether its channels come last in memory.
    """

    formats: dict[nn.Module, list[Format]] = field(default_factory=dict)
    tail: tuple[int, ...] = ()
    output: Tensor | None = None
    device: torch.device | None = None
    channels_last: bool = False

    def set_output(self, output: Tensor) -> None:
        """Set the output of the boundary."""
        self.output, self.tail, self.device = output, tuple(output.shape[1:]), output.device
        is_image = output.dim() == IMAGE_DIM and not output.is_contiguous()
        self.channels_last = is_image and output.is_contiguous(memory_format=torch.channels_last)

    @property
    def fits_every_width(self) -> bool:
        """Whether the formats fit batches of every width."""
        formats = [form for forms in self.formats.values() for form in forms if form.by_row]
        return all(form.fits_every_width(self.tail) for form in formats)


class PrefixForward:
    """Replaces the forward of the modules of a prefix during a forward pass of its owner.

    Args:
        prefix: The prefix.
        passed: Called when the boundary has run.
    """

    def __init__(self, prefix: Prefix, passed: Callable[[], None]) -> None:
        self._prefix, self._passed = prefix, passed
        self._modules = [*prefix.blocks, *prefix.frozen]

    @contextmanager
    def recording(self, number: int, replace: Callable[[Tensor], Tensor]) -> Iterator[Recording]:
        """A context in which the prefix runs.

        Args:
            number: Number of rows.
            replace: Function of the output of the boundary that returns the tensor to go on with.
        """
        recording = Recording()

        def recorder(module: nn.Module) -> Callable[..., Any]:
            forward = module.forward

            def record(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                if recording.output is not None:
                    return output
                inputs = tree_flatten((args, kwargs))[0]
                main = _main(self._prefix.name, inputs, output, number) if module is self._prefix.boundary else None
                form = format_of(module, inputs, output, number, main)
                recording.formats.setdefault(module, []).append(form)
                if main is not None:
                    self._check_order(recording)
                    recording.set_output(main)
                    output = _with(output, main, replace(main))
                    self._passed()
                return output

            return record

        with self._replaced(recorder):
            yield recording

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which the prefix runs, without a record."""
        forward = self._prefix.boundary.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self._passed()
            return output

        with forward_replaced(self._prefix.boundary, run):
            yield

    def _check_order(self, recording: Recording) -> None:
        if any(len(recording.formats.get(block, ())) != 1 for block in self._prefix.blocks):
            raise NotImplementedError(
                f"activation_cache needs blocks that run once each, in their order, up to {self._prefix.name!r}. "
                f"{type(self._prefix.owner).__name__} runs them otherwise. Set activation_cache=None."
            )

    @contextmanager
    def replaying(self, recording: Recording, kept: Tensor) -> Iterator[list[int]]:
        """A context in which the boundary returns ``kept``, and the modules below return tensors without values.

        Modules whose output is the same for all rows run, such as a table of positions or the norm of one.

        Yields:
            A list with one entry once the boundary was called.
        """
        calls: list[int] = []

        def stub(module: nn.Module) -> Callable[..., Any]:
            forward, forms = module.forward, iter(recording.formats[module])

            def replay(*args: Any, **kwargs: Any) -> Any:
                form = None if calls else next(forms, None)
                if form is None or not form.by_row:
                    return forward(*args, **kwargs)
                output = form.output(tree_flatten((args, kwargs))[0], kept, recording.tail)
                if module is self._prefix.boundary:
                    calls.append(1)
                    self._passed()
                return output

            return replay

        with self._replaced(stub, list(recording.formats)):
            yield calls

    @contextmanager
    def _replaced(
        self, make: Callable[[nn.Module], Callable[..., Any]], modules: list[nn.Module] | None = None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self._modules if modules is None else modules:
                stack.enter_context(forward_replaced(module, make(module)))
            yield


def _main(name: str, inputs: list[Any], output: Any, number: int) -> Tensor:
    """The first tensor in the output of the boundary that has an entry for each row.

    Raises:
        NotImplementedError: there is none.
    """
    given = {id(value) for value in inputs}
    found = [
        leaf
        for leaf in tree_flatten(output)[0]
        if isinstance(leaf, Tensor) and id(leaf) not in given and leaf.is_floating_point()
        if leaf.dim() > 1 and leaf.shape[0] == number
    ]
    if not found:
        raise NotImplementedError(
            f"activation_cache keeps one tensor for each row, but {name!r} returns none. Set activation_cache=None."
        )
    return found[0]  # the trial finds out whether the upper blocks read others too, such as attention weights


def _with(output: Any, main: Tensor, replacement: Tensor) -> Any:
    leaves, spec = tree_flatten(output)
    return tree_unflatten([replacement if leaf is main else leaf for leaf in leaves], spec)
