"""Run inactive modules forward at fast steps: their mode, their buffers and their precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from hf_multirate.backward.low_precision import DTYPES, LowPrecisionForward
from hf_multirate.backward.noise_modules import only_noise
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Step
from hf_multirate.model.hooks import around_forward
from hf_multirate.model.step_part import StepPart


class InactiveForward(StepPart):
    """Mode, buffers and precision of inactive modules, which have idle parameters and no live ones.

    Args:
        config: The settings that begin with ``inactive_``.
        optimizer: Class of the optimizer, on which the default of ``inactive_forward`` depends.
        compiled: Whether ``torch.compile`` traces the model.
        sharded: Whether a process holds a part of each parameter only.
        moved: The parameters that a step moves.

    Raises:
        ValueError: a lower precision is asked for in a model that is compiled as a whole.
        NotImplementedError: a lower precision is asked for with sharded parameters.
    """

    def __init__(
        self,
        config: MultirateConfig,
        optimizer: type[Optimizer],
        *,
        compiled: bool,
        sharded: bool,
        moved: Callable[[Step], Iterable[nn.Parameter]] = lambda step: (),
    ) -> None:
        self._moved = moved
        self._evaluates = (config.inactive_forward or ("train" if optimizer is SGD else "eval")) == "eval"
        self._freezes = config.inactive_buffers == "freeze"
        self._precision = None if config.inactive_dtype is None else LowPrecisionForward(DTYPES[config.inactive_dtype])
        self._noisy: dict[nn.Module, list[nn.Module]] = {}
        asked = config.inactive_dtype
        if asked and compiled:
            raise ValueError(
                f"inactive_dtype={asked!r} changes modules from step to step, but torch.compile traces the whole "
                "model: leave one of the two out (torch_compile=True with Trainer)."
            )
        if asked and sharded:
            raise NotImplementedError(
                f"inactive_dtype={asked!r} is untested with sharded parameters (FSDP2): leave it out, or use "
                "bf16=True."
            )

    def begin(self, step: Step) -> None:
        """At a full step, forget the modules and the weights of the cycle before."""
        if not step.full:
            return
        self._noisy.clear()  # the parts of a module may change in training
        if self._precision is not None:
            self._precision.forget_all()

    def after_step(self, step: Step) -> None:
        """Forget the low-precision weights of the parameters that ``step`` has moved."""
        if self._precision is not None:
            self._precision.forget(self._moved(step))

    def close(self) -> None:
        """Keep nothing of the model."""
        self._noisy.clear()
        if self._precision is not None:
            self._precision.close()

    @contextmanager
    def running(self, modules: Sequence[nn.Module], *, cuts: bool) -> Iterator[None]:
        """While it is open, ``modules`` run so.

        Args:
            modules: The outermost modules that are idle as a whole.
            cuts: Whether autograd records nothing of them; else precision and code are those of plain training.
        """
        with ExitStack() as stack:
            if self._evaluates:
                stack.enter_context(evaluating(modules, self._noisy))
            if self._freezes:
                stack.enter_context(frozen_buffers(modules))
            if self._precision is not None and cuts:
                stack.enter_context(self._precision.casting(modules))
            yield


def evaluating(
    modules: Iterable[nn.Module], known: dict[nn.Module, list[nn.Module]] | None = None
) -> AbstractContextManager[None]:
    """Take dropout, and noise like it, away from ``modules`` and all inside them during their own forward passes.

    Parts of which the mode decides about noise alone are in eval mode then. All others stay in training mode: those
    with running statistics, so that they see every batch as in standard training, and those with other outputs.

    Modes are set around each forward pass, so that a loop may call ``model.train()`` while the context is open, as
    Trainer does. The flags are set one by one and given back exactly, because modules of a user may be in eval mode
    for good, or override ``train()``.

    Args:
        modules: The modules.
        known: Keeps the parts of each module that are switched, for the next call.
    """
    known = {} if known is None else known
    noisy: dict[nn.Module, list[nn.Module]] = {}
    for module in modules:
        if module not in known:
            known[module] = [part for part in module.modules() if only_noise(part)]
        noisy[module] = [part for part in known[module] if "forward" not in vars(part)]  # put there since

    def evaluate(module: nn.Module, inputs: Any) -> Callable[[], None]:
        del inputs
        switched = [part for part in noisy[module] if part.training]
        for part in switched:
            part.training = False

        def take_back() -> None:
            for part in switched:
                part.training = True

        return take_back

    return around_forward(noisy, evaluate)


@contextmanager
def frozen_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the buffers of ``modules`` back on exit, such as the running statistics of batch norm."""
    kept = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
