"""Cache of activations: the frozen lower blocks run once for each row, and their output is kept.

The output of a frozen prefix that runs as in inference is the same for a row at every epoch. Rows are found again by
their content, see `hf_multirate.backward.row_keys`. If all rows of a batch are kept, no block of the prefix runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_multirate.backward.activation_store import ActivationStore
from hf_multirate.backward.cached_prefix import Prefix
from hf_multirate.backward.gradient_checkpointing import checkpointing_modules, reentrant_modules
from hf_multirate.backward.padding_gradient import PaddingGradient
from hf_multirate.backward.padding_trial import padding_matters
from hf_multirate.backward.prefix_forward import PrefixForward, Recording
from hf_multirate.backward.prefix_trial import check_boundary, check_inputs, try_prefix
from hf_multirate.backward.row_keys import Place, Rows, named_inputs, rows_of
from hf_multirate.model.hooks import OwnHook
from hf_multirate.model.step_part import StepPart


logger = logging.get_logger(__name__)

OTHER_OUTPUTS = ("output_hidden_states", "output_attentions", "use_cache")
"""Arguments that ask for outputs of the lower blocks. A call with one of them runs the whole model."""


Kind = tuple[tuple[str, ...], bool, str | None, str]
"""Kind of a pass: names of the inputs, mode of the model, precision of autocast, adapters in use."""


@dataclass
class CacheCounts:
    """Counts of an activation cache since it was attached.

    Attributes:
        hits: Rows whose output was kept already, in batches that were served from the cache.
        misses: Rows that ran through the whole model.
        rows: Rows in the store, those of earlier runs and other processes included if it is on disk.
        bytes: Size of the store in bytes.
        seconds: Seconds for keys, look-ups, keeping rows and putting batches together.
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0


class ActivationCache(StepPart):
    """Keeps the output of a prefix, and returns it instead of running the prefix.

    Hooks on the owner of the prefix last until `close`. The forward of modules is replaced only during a forward pass
    of the owner, so that copies and saved models are not touched.

    Args:
        prefix: The prefix.
        store: Where rows are kept.
    """

    def __init__(self, prefix: Prefix, store: ActivationStore) -> None:
        self.counts = CacheCounts()
        self.store = store
        self._prefix = prefix
        self._forward = PrefixForward(prefix, self._leave_inference)
        self._quiet = prefix.quiet_modules
        self._checkpointing = checkpointing_modules(prefix.owner)
        self._switched: list[nn.Module] = []
        self._tried: dict[Kind, bytes] = {}
        self._recordings: dict[Any, Recording] = {}
        self._versions: list[tuple[int, int]] = []
        self._fingerprint = ""
        self._padded = True
        parameters = [p for module in prefix.trained_modules for p in module.parameters(recurse=False)]
        self._padding = PaddingGradient([p for p in parameters if p.requires_grad])
        # Groups that rest for a stage are trainable outside of its steps.
        self._resting = any(tensor.requires_grad for tensor in prefix.tensors.values())
        self._pass = ExitStack()
        self._finish: Callable[[], None] | None = None
        owner = prefix.owner
        self._handles = [
            owner.register_forward_pre_hook(OwnHook(self._enter, owner), with_kwargs=True),
            owner.register_forward_hook(OwnHook(self._leave, owner), always_call=True),
        ]
        boundary = prefix.boundary
        self._first_call = boundary.register_forward_pre_hook(OwnHook(self._warn_unused, boundary))

    def summary(self) -> dict[str, float]:
        """The counts by name."""
        if self._handles:
            self.counts.rows, self.counts.bytes = self.store.rows, self.store.size
        return asdict(self.counts)

    def close(self) -> None:
        """See `StepPart`. Rows in memory are forgotten, and those on disk stay."""
        self.summary()  # the last one
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._first_call.remove()
        self._leave_pass()
        self.store.close()
        self._recordings.clear()

    def _warn_unused(self, boundary: nn.Module, args: Any) -> None:
        """At the first call of the boundary, if the hooks on the owner have not run."""
        del boundary, args
        self._first_call.remove()
        logger.warning(
            "the activation cache is not used, because the forward method of %s is called directly, without the hooks "
            "of the module. Sentence Transformers does so. All rows run through the whole model.",
            type(self._prefix.owner).__name__,
        )

    def _enter(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass of the owner: look up its rows, and replace the forward of the prefix."""
        self._first_call.remove()
        self._leave_pass()
        self._check_weights()
        begun = time.perf_counter()
        inputs = named_inputs(owner, args, kwargs)
        if inputs is None or any(inputs.get(name) for name in OTHER_OUTPUTS):
            self._pass_by()
            return
        check_inputs(self._prefix, inputs)
        kind = (tuple(inputs), owner.training, _autocast(owner), self._prefix.adapter_state())
        rows = self._rows(inputs, kind)
        if rows is None:
            self._pass_by()
            return
        expected = None
        if kind not in self._tried:
            rows, expected = self._try(inputs, kind, rows, args, kwargs)
            begun = time.perf_counter()  # the trial is no look-up
        kept = self._look_up(rows, kind)
        self.counts.seconds += time.perf_counter() - begun
        self._enter_inference()
        if kept is None:
            self._miss(rows, kind, expected)
        else:
            self._hit(rows, *kept)

    def _try(
        self, inputs: dict[str, Any], kind: Kind, rows: Rows, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Rows, Tensor]:
        """Try the first batch of a kind; returns its rows as they are kept, and the output of the boundary."""
        if rows.places is not None and padding_matters(self._prefix, self._forward, inputs):
            self._padded = False
            rows = self._rows_again(inputs, kind)
        try:
            recording = try_prefix(self._prefix, self._forward, args, kwargs, rows)
        except NotImplementedError:
            if not self._padding.unknown(rows):
                raise
            self._padding.set_read()  # the cause, if the trial succeeds with whole rows
            rows = self._rows_again(inputs, kind)
            recording = try_prefix(self._prefix, self._forward, args, kwargs, rows)
        expected = recording.output
        assert expected is not None  # otherwise the trial has raised an error
        # Positions that are not those of the input cannot be cut.
        self._padded = self._padded and (rows.places is None or expected.shape[1:2] == (rows.width,))
        self._tried[kind] = repr((*kind[2:], expected.dtype)).encode()
        rows = self._rows_again(inputs, kind)
        self._record(rows, kind, recording)
        return rows, expected

    def _leave(self, owner: nn.Module, args: Any, output: Any) -> None:
        del owner, args
        finish, self._finish = self._finish, None
        self._leave_pass()
        if finish is not None and output is not None:
            finish()

    def _leave_pass(self) -> None:
        self._finish = None
        self._leave_inference()
        self._pass.close()

    def _pass_by(self) -> None:
        """Run the prefix as in inference, without looking at rows."""
        self._enter_inference()
        self._pass.enter_context(self._forward.running())

    def _rows(self, inputs: dict[str, Any], kind: Kind) -> Rows | None:
        seed = self._fingerprint.encode() + self._tried.get(kind, b"")
        return rows_of(self._prefix.owner, inputs, seed, padded=self._padded and not self._padding.read)

    def _rows_again(self, inputs: dict[str, Any], kind: Kind) -> Rows:
        rows = self._rows(inputs, kind)
        assert rows is not None  # it was not None before
        return rows

    def _record(self, rows: Rows, kind: Kind, recording: Recording) -> None:
        recording.output = None
        width = None if recording.fits_every_width else rows.width
        self._recordings[kind, rows.signature, width] = recording

    def _look_up(self, rows: Rows, kind: Kind) -> tuple[Recording, Tensor] | None:
        """The recording and the kept output of a batch; None unless all rows are kept and no padding is read."""
        name = (kind, rows.signature)
        recording = self._recordings.get((*name, None)) or self._recordings.get((*name, rows.width))
        if recording is None or not rows.keys or self._padding.unknown(rows):
            return None
        found = self.store.get(rows.keys)
        tensors = [tensor for tensor in found if tensor is not None]
        if len(tensors) < len(found):
            return None
        # From pinned memory, the batch is copied to a GPU while the host goes on.
        pinned = recording.device is not None and recording.device.type == "cuda"
        kept = put_together(tensors, rows.places, rows.width, pinned=pinned).to(recording.device, non_blocking=pinned)
        if recording.channels_last:
            kept = kept.contiguous(memory_format=torch.channels_last)
        return recording, kept

    def _hit(self, rows: Rows, recording: Recording, kept: Tensor) -> None:
        self.counts.hits += len(rows.keys)
        kept = self._marked(self._padding.watch_hit(kept, rows))
        calls = self._pass.enter_context(self._forward.replaying(recording, kept))

        def finish() -> None:
            if not calls:
                raise RuntimeError(
                    f"{self._prefix.name!r} was not called in a forward pass, although it was before. Set "
                    "activation_cache=None."
                )

        self._finish = finish

    def _miss(self, rows: Rows, kind: Kind, expected: Tensor | None) -> None:
        self.counts.misses += len(rows.keys)

        def keep(output: Tensor) -> Tensor:
            output = output.detach()
            if expected is not None:
                check_boundary(self._prefix, expected, output, rows)
            self._keep(rows, output)
            # The first pass of a stage also shows where backward stops. A gradient of the output would change that.
            hidden = expected is not None and self._resting
            return self._marked(output if hidden else self._padding.watch(output, rows))

        recording = self._pass.enter_context(self._forward.recording(len(rows.keys), keep))

        def finish() -> None:
            if recording.output is not None:
                self._record(rows, kind, recording)

        self._finish = finish

    def _keep(self, rows: Rows, output: Tensor) -> None:
        begun = time.perf_counter()
        if not self.store.full:
            values = output.cpu()
            places = rows.places or [slice(None)] * len(rows.keys)
            self.store.put(
                (key, values[row][place]) for row, (key, place) in enumerate(zip(rows.keys, places, strict=True))
            )
        self.counts.seconds += time.perf_counter() - begun

    def _marked(self, output: Tensor) -> Tensor:
        """``output``, which requires a gradient if the upper blocks recompute with ``use_reentrant=True``."""
        marks = torch.is_grad_enabled() and reentrant_modules(self._checkpointing)
        return output.requires_grad_() if marks else output

    def _check_weights(self) -> None:
        """Forget the kept rows if a weight of the prefix has changed."""
        if torch.is_grad_enabled():  # groups that rest for a stage are trainable outside of its steps
            self._prefix.require_frozen()
        versions = self._prefix.versions()
        if versions == self._versions:
            return
        fingerprint = self._prefix.fingerprint()
        if self._fingerprint and fingerprint != self._fingerprint:
            logger.warning("weights below %r have changed, so the activation cache begins again.", self._prefix.name)
            self.store.clear()
        self._versions, self._fingerprint = versions, fingerprint

    def _enter_inference(self) -> None:
        self._leave_inference()
        self._switched = [module for module in self._quiet if module.training]
        for module in self._switched:
            module.training = False

    def _leave_inference(self) -> None:
        """Restore the modes once the boundary has run, as a module of the prefix may run again above it."""
        for module in self._switched:
            module.training = True
        self._switched = []


def put_together(
    tensors: Sequence[Tensor], places: Sequence[Place] | None, width: int, *, pinned: bool = False
) -> Tensor:
    """A batch of kept rows, with zeros at padded positions.

    Attention gives padded positions the weight 0, so that any finite value will do. If the loss reads them, rows are
    kept whole: see `hf_multirate.backward.padding_gradient`.

    Args:
        tensors: The kept rows.
        places: Positions of each row in the batch; None if rows are kept whole.
        width: Number of positions.
        pinned: Whether the batch is in pinned memory, which needs a GPU.
    """
    dtype, sizes, device = tensors[0].dtype, tensors[0].shape, tensors[0].device
    if places is None:
        batch = torch.empty((len(tensors), *sizes), dtype=dtype, device=device, pin_memory=pinned)
        return torch.stack(list(tensors), out=batch)
    batch = torch.zeros((len(tensors), width, *sizes[1:]), dtype=dtype, device=device, pin_memory=pinned)
    for row, (place, tensor) in enumerate(zip(places, tensors, strict=True)):
        batch[row, place] = tensor
    return batch


def _autocast(owner: nn.Module) -> str | None:
    """The precision of autocast; None without it."""
    device = next((parameter.device.type for parameter in owner.parameters()), "cpu")
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
