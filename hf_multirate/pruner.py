"""Prune forward and backward of a micro-batch for a given set of live rate groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from hf_multirate.checkpointing import checkpointing_modules, markable, without_marks, without_reentrance
from hf_multirate.cost import StepCosts, layers_of
from hf_multirate.forecast import Forecast
from hf_multirate.idle_pass import IdlePass
from hf_multirate.pruning import idle, idle_modules, kept_idle, recorded


@dataclass
class _Idle:
    """What is idle while one set of rate groups is live."""

    parameters: list[nn.Parameter]
    trained: list[bool]
    modules: list[tuple[str, nn.Module]]
    markable: list[nn.Module]
    inspected: bool = False


class Pruner:
    """Opens the context in which a micro-batch runs; the model is as before when it closes.

    Args:
        model: The model that owns the parameters.
        groups: Rate group name -> parameter name -> parameter.
        idle_pass: How modules of idle parameters, without a live one, run forward.
        compiled: Whether ``torch.compile`` traces the model: then nothing is watched.
        forecast: Compares what is seen of a step with its prediction; None makes one for single steps.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        idle_pass: IdlePass,
        *,
        compiled: bool = False,
        forecast: Forecast | None = None,
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._idle_pass = idle_pass
        self._groups = groups
        self._idle: dict[frozenset[str], _Idle] = {}
        self._checkpointing = checkpointing_modules(model)
        if forecast is None:
            forecast = Forecast(model, groups, StepCosts(list(groups), groups, layers_of(model)))
        self._forecast = forecast

    @contextmanager
    def pruned(self, live: frozenset[str], *, cuts: bool = True) -> Iterator[None]:
        """While it is open only the groups named in ``live`` require a gradient.

        The first micro-batch of each set of live groups is watched: if backward does not stop where it was predicted
        to, a warning says so once.

        Args:
            live: Names of the live groups.
            cuts: Whether backward is cut short; False for everything else a fast-only step has.

        Raises:
            RuntimeError: all that is live was frozen.
        """
        if len(live) == len(self._groups):
            self._idle_pass.begin()
            yield
            return
        found = self._what_idles(live)
        if not any(parameter.requires_grad for name in live for parameter in self._groups[name].values()):
            raise RuntimeError(
                f"no parameter of the live rate groups {sorted(live)} requires a gradient: all were frozen since "
                "training began. Freeze slow parameters only, or train on in a run of its own."
            )
        with ExitStack() as stack:
            if cuts:
                stack.enter_context(self._cut(live, found))
            stack.enter_context(self._idle_pass.running([module for _, module in found.modules], cuts=cuts))
            yield

    @contextmanager
    def _cut(self, live: frozenset[str], found: _Idle) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(idle(found.parameters))
            stack.enter_context(without_reentrance(self._model, self._checkpointing, hooked=not self._compiled))
            stack.enter_context(without_marks(self._model, found.markable, renewed=not self._compiled))
            if not self._compiled:  # a graph cannot change flags
                trained = [p for p, flag in zip(found.parameters, found.trained, strict=True) if flag]
                stack.enter_context(kept_idle(self._model, trained))
            # Hooks that come and go would have a compiled model compiled once more.
            if not found.inspected and not self._compiled:
                stack.enter_context(self._inspected(live, found))
            yield

    def _what_idles(self, live: frozenset[str]) -> _Idle:
        """As `_find` says, found once, and again when a parameter was frozen or unfrozen since."""
        found = self._idle.get(live)
        if found is None or found.trained != [parameter.requires_grad for parameter in found.parameters]:
            inspected = found is not None and found.inspected
            found = self._idle[live] = self._find(live)
            found.inspected = inspected
        return found

    def _find(self, live: frozenset[str]) -> _Idle:
        live_parameters = [p for name in live for p in self._groups[name].values()]
        parameters = [p for name, members in self._groups.items() if name not in live for p in members.values()]
        found = idle_modules(self._model, live_parameters)
        # What is frozen may lie between live modules, as the base of an adapter does: it stays as it is.
        trained = [parameter.requires_grad for parameter in parameters]
        identities = {id(parameter) for parameter, flag in zip(parameters, trained, strict=True) if flag}
        modules = [(name, part) for name, part in found if any(id(p) in identities for p in part.parameters())]
        return _Idle(parameters, trained, modules, markable(self._model, (module for _, module in found)))

    @contextmanager
    def _inspected(self, live: frozenset[str], found: _Idle) -> Iterator[None]:
        """Watch the forward pass of a micro-batch; one that fails is not counted."""
        with recorded(self._model, found.modules) as names, self._forecast.watched() as passage:
            yield
        if passage.turns:
            self._idle[live].inspected = True
            self._forecast.check(live, names, passage)
