"""A head start: before training, a new head takes many steps on kept outputs of the base model.

The base model runs once for each batch, without gradients. The steps of the head cost next to nothing.
Source of the idea: linear probing before fine-tuning, Kumar et al., ICLR 2022, arXiv 2202.10054.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_multirate.backward.kept_activations import KeptOutputs
from hf_multirate.config.validation import require_int, require_items, require_positive
from hf_multirate.controller.guards import require_model
from hf_multirate.distributed.all_reduce import average
from hf_multirate.distributed.unsupported import check_head_start_of_model
from hf_multirate.model.evaluation_mode import evaluating
from hf_multirate.model.levels import base_of, unwrap_peft
from hf_multirate.model.presets import head_parameters
from hf_multirate.model.random_state import random_state_restored
from hf_multirate.model.unwrap import ddp_wrappers, unwrap_model


logger = logging.getLogger(__name__)

LossFunction = Callable[[nn.Module, Any], Tensor]
"""Returns the loss of a model for a batch, a scalar."""

RATES = (1e-3, 1e-2, 1e-1)
"""Learning rates of which one is chosen: the best one depends on the scale of the outputs of the base model."""

HELD_OUT = 4
"""One of this many batches is held out to choose the learning rate."""

WEIGHT_DECAY = 0.01

LOADED = "_is_hf_initialized"
"""Mark of transformers 5 on parameters that it has read from a checkpoint."""


@dataclass(frozen=True)
class HeadStartResult:
    """What a head start did.

    Attributes:
        batches: Number of batches of this process.
        steps: Number of steps of the head, without those that chose the learning rate.
        learning_rate: The learning rate; 0 if none lowered the loss, in which case the head is unchanged.
        loss_before: Mean loss of the batches before, in evaluation mode.
        loss_after: The same after.
        seconds: Seconds of the whole head start.
    """

    batches: int
    steps: int
    learning_rate: float
    loss_before: float
    loss_after: float
    seconds: float


def head_start(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    steps: int = 150,
    learning_rate: float | None = None,
    loss: LossFunction | None = None,
) -> HeadStartResult:
    """Train the head of ``model`` on kept outputs of its base model, before training in a custom loop.

    The base model runs forward once for each batch, in evaluation mode and without gradients. The head then takes
    ``steps`` steps of AdamW with a learning rate that falls to zero. Only parameters outside ``model.base_model``
    change. Random generators, modes and gradients are left as they were.

    With DistributedDataParallel, each process passes batches of its own. Gradients are averaged, so the heads of all
    processes stay equal.

    Args:
        model: A transformers model with a new head, possibly in peft, DistributedDataParallel or ``torch.compile``.
        batches: The batches, on the device of the model. Use the first ones of training.
        steps: Number of steps.
        learning_rate: Learning rate of the first step; None tries 0.001, 0.01 and 0.1 on three quarters of the batches
            and takes the one with the lowest loss on the others.
        loss: Function ``(model, batch) -> loss``; None for ``model(**batch).loss``.

    Raises:
        ValueError: there is no batch, or the model has no head, or its head is frozen or not used by the loss.
        NotImplementedError: the model is sharded.
        TypeError: a value has the wrong type.
    """
    require_model("head_start()", model)
    batches = require_items("batches of head_start()", batches, "a list of batches")
    check_head_start_of_model(model)
    wrappers = ddp_wrappers(model)
    group = wrappers[0].process_group if wrappers else None
    return take_head_start(unwrap_model(model), batches, loss or loss_of_output, steps, learning_rate, group)


def take_head_start(
    model: nn.Module,
    batches: Sequence[Any],
    loss: LossFunction,
    steps: int,
    learning_rate: float | None,
    group: dist.ProcessGroup | None,
) -> HeadStartResult:
    """The same as `head_start` for a model without wrapper, and the process group of its wrapper."""
    steps = require_int("steps of a head start", steps, least=1, unit="steps")
    rates = RATES if learning_rate is None else (require_positive("learning_rate", learning_rate),)
    begun = time.perf_counter()
    head = trainable_head(model)
    warn_of_old_head(model)
    if not batches:
        raise ValueError("a head start needs at least one batch, got none. Give some batches of the training data.")
    # Compiled code would ignore the replaced forward pass.
    with random_state_restored(head), evaluating(model), torch.compiler.set_stance("force_eager"):
        trial = _Head(model, batches, loss, head, group)
        rate, before, after = trial.train(steps, rates)
    return HeadStartResult(len(batches), steps, rate, before, after, time.perf_counter() - begun)


def head_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of the head by name.

    Raises:
        ValueError: the model has no head.
    """
    try:
        return head_parameters(model)
    except ValueError as error:
        why = str(error).partition("; use")[0]
        raise ValueError(
            f"a head start needs a head, but {why}. A model without a new head needs no head start and no head rate. "
            "Set head_start=0 and head_lr_scale=1, or choose another setting than new_head. A new head that is not "
            "found can be a rate group of its own, with lr_scale=10."
        ) from error


def trainable_head(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the head that require a gradient.

    Raises:
        ValueError: the model has no head, or a frozen one.
    """
    found = head_of(model)
    head = [parameter for parameter in found.values() if parameter.requires_grad]
    if not head:
        raise ValueError(
            f"a head start trains the head, but all its parameters are frozen, e.g. {next(iter(found))!r}. Set "
            "requires_grad of the head, or head_start=0."
        )
    return head


def warn_of_old_head(model: nn.Module) -> None:
    """Warn if the head is not new: that of a language model, or one that was loaded with the base model."""
    inner = unwrap_peft(model)
    if not isinstance(inner, PreTrainedModel):
        return
    embeddings: Any = inner.get_output_embeddings()  # type: ignore[no-untyped-call]
    # transformers 5 marks parameters that it has read from a checkpoint; 4.57 marks none of them.
    if all(LOADED in vars(parameter) for parameter in head_of(model).values()):
        reason = "was loaded from a checkpoint, so it may be trained already"
    elif embeddings is not None:  # None for a model with a new head
        reason = "is that of a language model, which was trained before"
    else:
        return
    logger.warning(
        "the head of %s %s. A head start is for a new head: on a few batches an old one can lose more than it gains. "
        "If the head is trained, set head_start=0 and head_lr_scale=1.", type(inner).__name__, reason,
    )  # fmt: skip


def loss_of_output(model: nn.Module, batch: Any) -> Tensor:
    """``model(**batch).loss``.

    Raises:
        ValueError: the output has no loss.
    """
    loss: Tensor | None = model(**batch).loss
    if loss is None:
        raise ValueError(f"{type(model).__name__} returns no loss for a batch. Give batches with labels, or loss=.")
    return loss


class _Head:
    """The head of a model, and its losses on the kept batches."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        loss: LossFunction,
        head: Sequence[nn.Parameter],
        group: dist.ProcessGroup | None,
    ) -> None:
        base = base_of(model)
        assert base is not None  # a model with a head has one
        self._model, self._batches, self._loss, self._group = model, batches, loss, group
        self._head = list(head)
        # The optimizer gets parameters of its own in the same memory: hooks on optimizers look for those of the model.
        self._aliases = [nn.Parameter(parameter.detach()) for parameter in head]
        self._first = [parameter.detach().clone() for parameter in head]
        self._kept = KeptOutputs(base)
        self._before: list[float] = []

    def train(self, steps: int, rates: Sequence[float]) -> tuple[float, float, float]:
        """Keep the outputs, choose one of ``rates`` and train. Returns it, and the losses before and after."""
        everything = list(range(len(self._batches)))
        before = self._mean([self._keep(batch) for batch in self._batches])
        held = everything[-(len(everything) // HELD_OUT) :] if len(everything) >= HELD_OUT else everything
        seen = everything[: -len(held)] or everything
        try:
            rate = rates[0] if len(rates) == 1 else self._choose(seen, held, steps, rates)
            if rate:
                self._fit(everything, steps, rate)
            after = self._mean([self._loss_of(i) for i in everything])
        except BaseException:
            self._reset()
            raise
        if rate and after < before:
            return rate, before, after
        self._reset()
        logger.warning("the head start did not lower the loss of its batches, so the head is unchanged.")
        return 0.0, before, before

    def _choose(self, seen: Sequence[int], held: Sequence[int], steps: int, rates: Sequence[float]) -> float:
        """The rate with the lowest loss on the batches ``held``; 0 if none lowers it."""
        losses = {0.0: self._mean([self._loss_of(i) for i in held])}
        for rate in rates:
            self._fit(seen, steps, rate)
            losses[rate] = self._mean([self._loss_of(i) for i in held])
            self._reset()
        return min(losses, key=lambda rate: losses[rate] if losses[rate] == losses[rate] else float("inf"))

    def _fit(self, batches: Sequence[int], steps: int, rate: float) -> None:
        optimizer = torch.optim.AdamW(self._aliases, lr=rate, weight_decay=WEIGHT_DECAY)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            for alias, gradient in zip(self._aliases, self._gradients(batches[step % len(batches)]), strict=True):
                alias.grad = gradient
            optimizer.step()
            torch.clear_autocast_cache()  # an autocast context of the caller keeps copies of the weights
        for alias in self._aliases:
            alias.grad = None

    def _gradients(self, batch: int) -> list[Tensor]:
        with torch.enable_grad(), self._kept.returned(batch):
            loss = self._loss(self._model, self._batches[batch])
            if not loss.requires_grad:
                raise ValueError(
                    "the loss does not depend on the head, so a head start cannot train it. Set head_start=0."
                )
            # Unlike backward(), this leaves .grad and the hooks of DistributedDataParallel alone.
            found = torch.autograd.grad(loss, self._head, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(self._head, found, strict=True)]
        average(gradients, self._group)
        return gradients

    @torch.no_grad()
    def _keep(self, batch: Any) -> float:
        with self._kept.keeping():
            loss = self._loss(self._model, batch)
        return float(loss)

    @torch.no_grad()
    def _loss_of(self, batch: int) -> float:
        with self._kept.returned(batch):
            return float(self._loss(self._model, self._batches[batch]))

    def _mean(self, losses: Sequence[float]) -> float:
        """Mean over batches and processes."""
        device = self._head[0].device
        mean = torch.tensor(sum(losses) / len(losses), dtype=torch.float32, device=device)
        average([mean], self._group)
        return float(mean)

    @torch.no_grad()
    def _reset(self) -> None:
        for parameter, first in zip(self._head, self._first, strict=True):
            parameter.copy_(first)
        torch.clear_autocast_cache()
