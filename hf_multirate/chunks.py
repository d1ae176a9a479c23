"""Split a batch by rows, so that a step holds the activations of one part at a time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import find_batch_size, gather_object, recursively_apply
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.utils import logging

from hf_multirate.distributed import unwrapped


logger = logging.get_logger(__name__)

IGNORED = -100
"""The label that losses of transformers leave out."""


def rows_of(batch: Any, parts: int | str = "several") -> int:
    """Number of rows of ``batch``, which is the first dimension of its first tensor; ``parts`` is for the error.

    Raises:
        ValueError: there is no tensor with rows.
    """
    try:
        rows: int | None = find_batch_size(batch)
    except (IndexError, TypeError, ValueError):  # as empty, or scalar, or of something else
        rows = None
    if rows is None:
        raise ValueError(f"a batch without a tensor that has rows cannot be split into {parts} parts, got {batch!r}.")
    return rows


def predicts_next(model: nn.Module) -> bool:
    """Whether the loss of ``model`` is the causal one of transformers, which leaves out the first label of a row.

    A class may be one by name and have another loss, as decoders of encoder-decoder models have.
    """
    model = unwrapped(model)
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) or model.loss_function is not ForCausalLMLoss:
        return False
    forwards = [inspect.unwrap(vars(kind)["forward"]) for kind in type(model).__mro__ if "forward" in vars(kind)]
    return any("loss_function" in forward.__code__.co_names for forward in forwards)


def split(batch: Any, count: int, *, shifted: bool = False) -> list[tuple[Any, float]]:
    """At most ``count`` parts of ``batch`` of about as many rows, and the share of the loss that each has.

    A loss that is a mean over rows, or over the labels that are not -100, is the sum of those of the parts, each times
    its share. A loss that compares rows with each other is not, nor are the statistics of batch norm.

    The loss of a part without labels may be no number. In its place goes one that has some, with a share of 0, so that
    all processes run as many parts, as FSDP2 needs.

    Args:
        batch: Tensors in dictionaries, lists or tuples. Those whose first dimension is the batch size, which is the
            one of the first tensor, are split; everything else goes to each part as it is.
        count: Number of parts, at least 1.
        shifted: Whether the first label of a row has no part in the loss: see `predicts_next`.

    Raises:
        ValueError: there is no tensor with rows.
    """
    if count == 1:
        return [(batch, 1.0)]
    rows = rows_of(batch, count)
    if rows == 1:
        logger.warning_once("refresh_chunks has no effect on a batch of one row, such as packed sequences are.")
    size = -(-rows // count)
    parts = [_rows(batch, start, size, rows) for start in range(0, rows, size)]
    items = [_items(part, min(size, rows - i * size), shifted) for i, part in enumerate(parts)]
    labelled = parts[max(range(len(parts)), key=items.__getitem__)]
    return [(part if item else labelled, item / max(1, sum(items))) for part, item in zip(parts, items, strict=True)]


def _rows(batch: Any, start: int, size: int, rows: int) -> Any:
    def part(tensor: Tensor) -> Tensor:
        return tensor[start : start + size] if tensor.dim() and tensor.shape[0] == rows else tensor

    return recursively_apply(part, batch)


def _items(part: Any, rows: int, shifted: bool) -> int:
    labels = part.get("labels") if isinstance(part, Mapping) else None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() == 0:
        return rows
    return int((labels[..., 1:] if shifted and labels.dim() > 1 else labels).ne(IGNORED).sum())


def adds_up(trainer: Trainer, model: nn.Module, part: Mapping[str, Any], items: Any) -> bool | None:
    """Whether losses of parts are sums over what a whole step has ``items`` of, and not means; None if none tells.

    Trainer names the number of items to all models that take it, and many take it and do not use it. So the loss of
    one row is looked at with twice the number: a sum is half as large then, a mean is the same. A loss that is 0 or no
    number, as without labels, tells nothing. All processes ask together, and have one answer.

    Raises:
        ValueError: it is neither.
    """
    if items is None:
        return False
    row = max(split(part, rows_of(part), shifted=predicts_next(model)), key=lambda row: row[1])[0]

    @torch.no_grad()
    def loss(number: Any) -> float:
        with torch.random.fork_rng(), trainer.compute_loss_context_manager():
            return trainer.compute_loss(model, trainer._prepare_inputs(dict(row)), num_items_in_batch=number).item()  # type: ignore[union-attr]

    answers = set(gather_object([_sums(loss(items), loss(2 * items))])) - {None}
    for answer in answers:
        if isinstance(answer, str):
            raise ValueError(answer)
    return answers.pop() if answers else None


def _sums(once: float, twice: float) -> bool | str | None:
    """True for a sum, False for a mean, None where nothing can be told, and what is wrong with anything else."""
    if once == 0 or not math.isfinite(once):
        return None
    for factor, sums in ((2, True), (1, False)):
        if math.isclose(twice * factor, once, rel_tol=1e-2):
            return sums
    return (
        f"refresh_chunks needs a loss that is a mean over its rows or labels, or a sum divided by num_items_in_batch: "
        f"that of one row is {once:.6g}, and {twice:.6g} with twice the number. Leave it at 1."
    )


@contextmanager
def scaled_backward(accelerator: Accelerator, scale: float) -> Iterator[None]:
    """While open, ``accelerator.backward`` multiplies losses by ``scale``."""
    backward = accelerator.backward
    vars(accelerator)["backward"] = lambda loss, **kwargs: backward(loss * scale, **kwargs)
    try:
        yield
    finally:
        del vars(accelerator)["backward"]
