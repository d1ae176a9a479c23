"""Prune forward and backward of a micro-batch for a given set of live rate groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from hf_multirate.backward.cost_check import CostCheck
from hf_multirate.backward.gradient_checkpointing import (
    checkpointing_modules,
    markable,
    non_reentrant,
    without_marks,
)
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.config.schedule import Step
from hf_multirate.model.cost_model import StepCosts, layers_of
from hf_multirate.model.hooks import OwnHook, last_hooks, tensors_in
from hf_multirate.model.step_part import StepPart


@dataclass
class _Idle:
    """What is idle while one set of rate groups is live."""

    parameters: list[nn.Parameter]
    trained: list[bool]
    modules: list[tuple[str, nn.Module]]
    markable: list[nn.Module]
    inspected: bool = False


class PartialBackward(StepPart):
    """Skips the backward pass below the live groups of a step.

    Args:
        model: The model that owns the parameters.
        groups: Rate group name -> parameter name -> parameter.
        inactive: Runs inactive modules forward.
        compiled: Whether ``torch.compile`` traces the model: then nothing is watched.
        forecast: Compares what is seen of a step with its prediction; None makes one for single steps.
        cuts: Whether backward may be cut short at the step that begins.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        inactive: InactiveForward,
        *,
        compiled: bool = False,
        forecast: CostCheck | None = None,
        cuts: Callable[[], bool] = lambda: True,
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._inactive = inactive
        self._groups = groups
        self._names = tuple(groups)
        self._cuts = cuts
        self._idle: dict[tuple[int, ...], _Idle] = {}
        self._checkpointing = checkpointing_modules(model)
        if forecast is None:
            forecast = CostCheck(model, groups, StepCosts(list(groups), groups, layers_of(model)))
        self._forecast = forecast

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool = False) -> Iterator[None]:
        """A context in which only the live groups of ``step`` require a gradient.

        The first micro-batch of each set of live groups is watched: if backward does not stop at the predicted place,
        a warning says so once.

        Raises:
            RuntimeError: all live parameters were frozen.
        """
        del last
        if step.full:
            yield
            return
        found, cuts = self._what_idles(step.live), self._cuts()
        if not any(parameter.requires_grad for parameter in self._parameters(step.live)):
            names = sorted(self._names[i] for i in step.live)
            raise RuntimeError(
                f"no parameter of the live rate groups {names} requires a gradient: all were frozen since "
                "training began. Freeze slow parameters only, or train on in a run of its own."
            )
        with ExitStack() as stack:
            if cuts:
                stack.enter_context(self._cut(step.live, found))
            stack.enter_context(self._inactive.running([module for _, module in found.modules], cuts=cuts))
            yield

    @contextmanager
    def _cut(self, live: tuple[int, ...], found: _Idle) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(requires_grad_off(found.parameters))
            stack.enter_context(non_reentrant(self._model, self._checkpointing, hooked=not self._compiled))
            stack.enter_context(without_marks(self._model, found.markable, renewed=not self._compiled))
            if not self._compiled:  # a graph cannot change flags
                trained = [p for p, flag in zip(found.parameters, found.trained, strict=True) if flag]
                stack.enter_context(keep_requires_grad_off(self._model, trained))
            # Hooks that come and go would have a compiled model compiled once more.
            if not found.inspected and not self._compiled:
                stack.enter_context(self._inspected(live, found))
            yield

    def _parameters(self, groups: Iterable[int]) -> list[nn.Parameter]:
        return [p for index in groups for p in self._groups[self._names[index]].values()]

    def _what_idles(self, live: tuple[int, ...]) -> _Idle:
        """As `_find` says, found once, and again when a parameter was frozen or unfrozen since."""
        found = self._idle.get(live)
        if found is None or found.trained != [parameter.requires_grad for parameter in found.parameters]:
            inspected = found is not None and found.inspected
            found = self._idle[live] = self._find(live)
            found.inspected = inspected
        return found

    def _find(self, live: tuple[int, ...]) -> _Idle:
        live_parameters = self._parameters(live)
        parameters = self._parameters(index for index in range(len(self._names)) if index not in live)
        found = inactive_modules(self._model, live_parameters)
        # What is frozen may lie between live modules, as the base of an adapter does: it stays as it is.
        trained = [parameter.requires_grad for parameter in parameters]
        identities = {id(parameter) for parameter, flag in zip(parameters, trained, strict=True) if flag}
        modules = [(name, part) for name, part in found if any(id(p) in identities for p in part.parameters())]
        return _Idle(parameters, trained, modules, markable(self._model, (module for _, module in found)))

    @contextmanager
    def _inspected(self, live: tuple[int, ...], found: _Idle) -> Iterator[None]:
        """Watch the forward pass of a micro-batch; one that fails is not counted."""
        with modules_recorded_by_autograd(self._model, found.modules) as names, self._forecast.watched() as passage:
            yield
        if passage.turns:
            self._idle[live].inspected = True
            self._forecast.check(live, names, passage)


@contextmanager
def requires_grad_off(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch ``requires_grad`` off for ``parameters``, and give each its flag back on exit, also after an error."""
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
    """Switch ``requires_grad`` off again before each forward pass of ``model``.

    PEFT switches it on for all adapters whenever it leaves ``disable_adapter()``, as trainers of TRL do for the
    log-probabilities of a reference within a step. It is on, too, in a copy of the model that is made between passes.
    """
    kept = list(parameters)
    inside = False

    def switch_off(*_: Any) -> None:
        nonlocal inside
        inside = True
        for parameter in kept:
            if parameter.requires_grad:
                parameter.requires_grad_(False)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def switch_on() -> None:
        if not inside:
            for parameter in kept:
                parameter.requires_grad_(True)

    before, after = OwnHook(switch_off, model, copied=switch_on), OwnHook(leave, model)
    handles = [model.register_forward_pre_hook(before), model.register_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        kept.clear()  # a hook before this one may close the context, and torch runs this one all the same
        for handle in handles:
            handle.remove()


@contextmanager
def modules_recorded_by_autograd(model: nn.Module, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[list[str]]:
    """Collect the names of those ``modules`` of ``model`` whose output autograd has recorded.

    The list is filled while the context is open, in the order of the forward pass.
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
    """The outermost modules that own parameters and none of the ``live`` ones, in order of registration."""
    identities = {id(parameter) for parameter in live}
    embeddings = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    embedded = {id(parameter) for part in embeddings for parameter in part.parameters()}
    found: list[tuple[str, nn.Module]] = []

    def walk(name: str, module: nn.Module) -> None:
        owned = {id(parameter) for parameter in module.parameters()}
        # A head tied to an embedding is recorded although the live part is a suffix.
        if not owned or (owned <= embedded and not any(part in embeddings for part in module.modules())):
            return
        # A container such as ModuleList has no forward of its own for a hook to see.
        if not owned & identities and not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            if all(module is not known for _, known in found):  # one that two towers share is one
                found.append((name, module))
            return
        for child_name, child in module.named_children():
            walk(f"{name}.{child_name}" if name else child_name, child)

    walk("", model)
    return found
