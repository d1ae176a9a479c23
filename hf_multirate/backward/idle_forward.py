"""How idle modules run forward at fast-only steps: as the inference pass that it is, or as in plain training."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from hf_multirate.backward.low_precision import DTYPES, LowPrecisionForward
from hf_multirate.backward.noise_modules import only_noise
from hf_multirate.config.config import MultirateConfig
from hf_multirate.model.hooks import around_forward


class InactiveForward:
    """Mode, buffers, precision and compilation of modules of idle parameters without a live one.

    Args:
        config: The settings that begin with ``idle_``.
        optimizer: Its class, on which they depend where they are left to the defaults.

    Raises:
        ValueError: idle modules of a model that is compiled as a whole are to be compiled or of lower precision.
        NotImplementedError: they are sharded.
    """

    def __init__(self, config: MultirateConfig, optimizer: type[Optimizer], *, compiled: bool, sharded: bool) -> None:
        self._evaluates = (config.idle_mode or ("train" if optimizer is SGD else "eval")) == "eval"
        self._freezes = config.idle_buffers == "freeze"
        self._precision = None if config.idle_dtype is None else LowPrecisionForward(DTYPES[config.idle_dtype])
        self._compiles = config.idle_compile
        self._forwards: dict[nn.Module, _Compiled] = {}
        self._noisy: dict[nn.Module, list[nn.Module]] = {}
        asked = [f"idle_dtype={config.idle_dtype!r}"] if config.idle_dtype else []
        asked += ["idle_compile=True"] if config.idle_compile else []
        if asked and compiled:
            raise ValueError(
                f"{' and '.join(asked)} change idle modules from step to step, but torch.compile traces the whole "
                "model: leave one of the two out (torch_compile=True with Trainer)."
            )
        if asked and sharded:
            raise NotImplementedError(
                f"{' and '.join(asked)}: never tried with sharded parameters (FSDP2). Leave it out, or use bf16=True."
            )

    def begin(self) -> None:
        """All groups have a gradient at the next step."""
        self._noisy.clear()  # the parts of a module may change in training
        if self._precision is not None:
            self._precision.forget_all()

    def moved(self, parameters: Iterable[nn.Parameter]) -> None:
        """A step has moved ``parameters``."""
        if self._precision is not None:
            self._precision.forget(parameters)

    def close(self) -> None:
        """Keep nothing of the model."""
        self._forwards.clear()
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
            if self._compiles and cuts:
                stack.enter_context(self._compiled(modules))
            yield

    @contextmanager
    def _compiled(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Give each module a compiled ``forward``; hooks stay outside of it, since they come and go."""
        before = [vars(module).get("forward") for module in modules]
        for module in modules:
            if module not in self._forwards:
                self._forwards[module] = _Compiled(module)
            vars(module)["forward"] = self._forwards[module]
        try:
            yield
        finally:
            for module, forward in zip(modules, before, strict=True):
                if forward is None:
                    del vars(module)["forward"]
                else:
                    vars(module)["forward"] = forward


class _Compiled:
    """The ``forward`` of a module, compiled; a copy or a pickle of the module has the one that it had before."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = vars(module).get("forward")
        functools.update_wrapper(self, module.forward)  # others may ask for its signature
        self._forward = torch.compile(module.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._before is None:
            return getattr, (self._module, "forward")  # that of its class, of the copy
        return operator.getitem, ([self._before], 0)


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
