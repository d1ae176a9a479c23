"""Forward pass of inactive modules at fast steps: their mode, their buffers and their precision."""

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
    """Sets mode, buffers and precision of inactive modules: modules with idle parameters and without live ones.

    Args:
        config: The configuration; its settings ``inactive_*`` are used.
        optimizer: Class of the optimizer, which determines the default of ``inactive_forward``.
        compiled: Whether ``torch.compile`` traces the model.
        sharded: Whether each process holds only a shard of each parameter.
        moved: Returns the parameters that a step changes.

    Raises:
        ValueError: ``inactive_dtype`` is set for a compiled model.
        NotImplementedError: ``inactive_dtype`` is set for sharded parameters.
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
        dtype = config.inactive_dtype
        if dtype and compiled:
            raise ValueError(
                f"inactive_dtype={dtype!r} does not work with torch.compile, which traces the whole model: the "
                "setting changes modules between steps. Remove inactive_dtype, or set torch_compile=False."
            )
        if dtype and sharded:
            raise NotImplementedError(
                f"inactive_dtype={dtype!r} is not supported with sharded parameters (FSDP2). Remove it, or train in "
                "bfloat16 with bf16=True."
            )

    def begin(self, step: Step) -> None:
        """Where all groups with a period are live, clear the cached modules and weights of the last cycle."""
        if not step.complete:
            return
        self._noisy.clear()  # the parts of a module may change in training
        if self._precision is not None:
            self._precision.forget_all()

    def after_step(self, step: Step) -> None:
        """Mark the low-precision weights of the parameters that ``step`` has changed as outdated."""
        if self._precision is not None:
            self._precision.forget(self._moved(step))

    def close(self) -> None:
        """Release all references to the model."""
        self._noisy.clear()
        if self._precision is not None:
            self._precision.close()

    @contextmanager
    def running(self, modules: Sequence[nn.Module], *, cuts: bool) -> Iterator[None]:
        """A context in which ``modules`` run with the mode, buffers and precision of inactive modules.

        Args:
            modules: The outermost inactive modules.
            cuts: Whether autograd does not record the modules. Otherwise they keep the precision of standard training.
        """
        with ExitStack() as stack:
            if self._evaluates:
                stack.enter_context(noise_off(modules, self._noisy))
            if self._freezes:
                stack.enter_context(frozen_buffers(modules))
            if self._precision is not None and cuts:
                stack.enter_context(self._precision.casting(modules))
            yield


def noise_off(
    modules: Iterable[nn.Module], cache: dict[nn.Module, list[nn.Module]] | None = None
) -> AbstractContextManager[None]:
    """A context in which ``modules`` and their submodules run forward without dropout and similar noise.

    Submodules whose mode controls only noise are in eval mode during the forward pass. All others stay in training
    mode. Modules with running statistics therefore see every batch, as in standard training.

    The mode is set around each forward pass, because a loop may call ``model.train()`` inside the context, as Trainer
    does. Each ``training`` flag is restored by itself, because a submodule may be in eval mode permanently or override
    ``train()``.

    Args:
        modules: The modules.
        cache: Module -> its submodules that add noise, filled here and reused by the next call.
    """
    cache = {} if cache is None else cache
    noisy: dict[nn.Module, list[nn.Module]] = {}
    for module in modules:
        if module not in cache:
            cache[module] = [part for part in module.modules() if only_noise(part)]
        noisy[module] = [part for part in cache[module] if "forward" not in vars(part)]  # assigned after caching

    def evaluate(module: nn.Module, inputs: Any) -> Callable[[], None]:
        del inputs
        switched = [part for part in noisy[module] if part.training]
        for part in switched:
            part.training = False

        def restore() -> None:
            for part in switched:
                part.training = True

        return restore

    return around_forward(noisy, evaluate)


@contextmanager
def frozen_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context that restores the buffers of ``modules`` on exit, such as the running statistics of batch norm."""
    values = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
