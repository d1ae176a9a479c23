"""Partial backward: run a micro-batch so that backward stops above the idle rate groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_multirate.backward.cost_check import CostCheck
from hf_multirate.backward.gradient_checkpointing import (
    checkpointing_modules,
    input_embeddings,
    marked_inputs_detached,
    non_reentrant,
)
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.config.schedule import Step
from hf_multirate.model.cost_model import StepCosts, layers_of
from hf_multirate.model.hooks import OwnHook, last_hooks, tensors_in
from hf_multirate.model.step_part import StepPart


@dataclass
class _IdleParts:
    """Idle parameters and inactive modules for one set of live rate groups.

    Attributes:
        parameters: The idle parameters.
        trained: Whether each of them is trainable.
        modules: Name and module of the outermost inactive modules with trainable parameters.
        embeddings: Input embeddings that activation checkpointing may mark.
        inspected: Whether the cost of a fast step was compared with its prediction.
    """

    parameters: list[nn.Parameter]
    trained: list[bool]
    modules: list[tuple[str, nn.Module]]
    embeddings: list[nn.Module]
    inspected: bool = False


class PartialBackward(StepPart):
    """Skips the backward pass below the live groups of a step.

    Args:
        model: The model that owns the parameters.
        groups: Rate group name -> parameter name -> parameter.
        inactive: Runs inactive modules forward.
        compiled: Whether ``torch.compile`` traces the model. Then the cost of steps is not checked.
        cost_check: Compares the cost of a step with its prediction; None creates a check for single steps.
        cuts: Returns whether backward may be partial at the present step.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        inactive: InactiveForward,
        *,
        compiled: bool = False,
        cost_check: CostCheck | None = None,
        cuts: Callable[[], bool] = lambda: True,
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._inactive = inactive
        self._groups = groups
        self._names = tuple(groups)
        self._cuts = cuts
        self._idle: dict[tuple[int, ...], _IdleParts] = {}
        self._checkpointing = checkpointing_modules(model)
        if cost_check is None:
            cost_check = CostCheck(model, groups, StepCosts(list(groups), groups, layers_of(model)))
        self._cost_check = cost_check

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool = False) -> Iterator[None]:
        """A context in which only the live groups of ``step`` require a gradient.

        At the first micro-batch of each set of live groups, the cost is compared with its prediction. If backward does
        not stop at the predicted place, one warning is logged.

        Raises:
            RuntimeError: all live parameters were frozen during training.
        """
        del last
        if step.full:
            yield
            return
        idle, cuts = self._idle_parts(step.live), self._cuts()
        if not any(parameter.requires_grad for parameter in self._parameters(step.live)):
            names = sorted(self._names[i] for i in step.live)
            raise RuntimeError(
                f"no parameter of the live rate groups {names} requires a gradient: all of them were frozen during "
                "training. Freeze only slow parameters, or train the remaining parameters in a new run."
            )
        with ExitStack() as stack:
            if cuts:
                stack.enter_context(self._partial(step.live, idle))
            stack.enter_context(self._inactive.running([module for _, module in idle.modules], cuts=cuts))
            yield

    @contextmanager
    def _partial(self, live: tuple[int, ...], idle: _IdleParts) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(requires_grad_off(idle.parameters))
            stack.enter_context(non_reentrant(self._model, self._checkpointing, hooked=not self._compiled))
            stack.enter_context(marked_inputs_detached(self._model, idle.embeddings, renewed=not self._compiled))
            if not self._compiled:  # a compiled graph cannot change requires_grad
                trained = [p for p, flag in zip(idle.parameters, idle.trained, strict=True) if flag]
                stack.enter_context(keep_requires_grad_off(self._model, trained))
            # Adding and removing hooks would recompile a compiled model.
            if not idle.inspected and not self._compiled:
                stack.enter_context(self._cost_checked(live, idle))
            yield

    def _parameters(self, groups: Iterable[int]) -> list[nn.Parameter]:
        return [p for index in groups for p in self._groups[self._names[index]].values()]

    def _idle_parts(self, live: tuple[int, ...]) -> _IdleParts:
        """The idle parts for ``live`` groups, cached until a parameter is frozen or unfrozen."""
        idle = self._idle.get(live)
        if idle is None or idle.trained != [parameter.requires_grad for parameter in idle.parameters]:
            inspected = idle is not None and idle.inspected
            idle = self._idle[live] = self._find_idle_parts(live)
            idle.inspected = inspected
        return idle

    def _find_idle_parts(self, live: tuple[int, ...]) -> _IdleParts:
        live_parameters = self._parameters(live)
        parameters = self._parameters(index for index in range(len(self._names)) if index not in live)
        inactive = inactive_modules(self._model, live_parameters)
        # Frozen modules may lie between live modules, as the base layers of an adapter do. They are not changed.
        trained = [parameter.requires_grad for parameter in parameters]
        identities = {id(parameter) for parameter, flag in zip(parameters, trained, strict=True) if flag}
        modules = [(name, part) for name, part in inactive if any(id(p) in identities for p in part.parameters())]
        embeddings = input_embeddings(self._model, (module for _, module in inactive))
        return _IdleParts(parameters, trained, modules, embeddings)

    @contextmanager
    def _cost_checked(self, live: tuple[int, ...], idle: _IdleParts) -> Iterator[None]:
        """Check the cost of a micro-batch; a failed forward pass does not count."""
        inactive = modules_recorded_by_autograd(self._model, idle.modules)
        with inactive as names, self._cost_check.record_forward() as record:
            yield
        if record.first_call:
            self._idle[live].inspected = True
            self._cost_check.check(live, names, record)


@contextmanager
def requires_grad_off(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context with ``requires_grad`` off for ``parameters``; the flags are restored on exit, also after an error."""
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def keep_requires_grad_off(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context that switches ``requires_grad`` off again before each forward pass of ``model``.

    PEFT switches it on for all adapters at the end of ``disable_adapter()``. Trainers of TRL use that within a step
    for the log-probabilities of a reference. In copies of the model made between forward passes it is on.
    """
    switched = list(parameters)
    inside = False

    def switch_off(*_: Any) -> None:
        nonlocal inside
        inside = True
        for parameter in switched:
            if parameter.requires_grad:
                parameter.requires_grad_(False)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def switch_on() -> None:
        if not inside:
            for parameter in switched:
                parameter.requires_grad_(True)

    before, after = OwnHook(switch_off, model, copied=switch_on), OwnHook(leave, model)
    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        switched.clear()  # torch still runs these hooks if an earlier hook has closed the context
        for handle in handles:
            handle.remove()


@contextmanager
def modules_recorded_by_autograd(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[str]]:
    """A context that collects the names of the ``modules`` whose output autograd records.

    Args:
        model: The model that contains the modules.
        modules: Name and module of each.

    Yields:
        A list that is filled in the order of the forward pass while the context is open.
    """
    names: list[str] = []

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            if name not in names and any(tensor.requires_grad for tensor in tensors_in(output)):
                names.append(name)

        return hook

    with last_hooks(model, [(module, note(name)) for name, module in modules]):
        yield names


def inactive_modules(model: nn.Module, live: Sequence[nn.Parameter]) -> list[tuple[str, nn.Module]]:
    """Name and module of the outermost modules without ``live`` parameters, in the order of registration.

    Modules without any parameter are left out.
    """
    identities = {id(parameter) for parameter in live}
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    embedded = {id(parameter) for part in embeddings for parameter in part.parameters()}
    inactive: list[tuple[str, nn.Module]] = []

    def walk(name: str, module: nn.Module) -> None:
        owned = {id(parameter) for parameter in module.parameters()}
        # Autograd records a head that is tied to an embedding even if the live parameters are a suffix of the model.
        if not owned or (owned <= embedded and not any(part in embeddings for part in module.modules())):
            return
        # A container such as ModuleList has no forward pass that a hook could observe.
        if not owned & identities and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            if all(module is not other for _, other in inactive):  # two towers may share a module
                inactive.append((name, module))
            return
        for child_name, child in module.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", model)
    return inactive
