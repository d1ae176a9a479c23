"""All that acts on a model and an optimizer while a controller has them, put together for one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.auto.planner import Planner
from hf_multirate.auto.work_budget import Account
from hf_multirate.auto.work_counter import CountedWork
from hf_multirate.backward.cost_check import CostCheck
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.backward.missing_gradients import MissingGradientCheck
from hf_multirate.backward.partial_backward import PartialBackward, requires_grad_off
from hf_multirate.config.config import MultirateConfig
from hf_multirate.distributed import GradSync
from hf_multirate.distributed.synced_step import SyncedStep
from hf_multirate.model.cost_model import StepCosts, layers_of
from hf_multirate.model.unwrap import canonical_parameters
from hf_multirate.optim.adalora import SensitivityOfLive, allocators_of
from hf_multirate.optim.optimizer_check import check_optimizer
from hf_multirate.optim.random_subsets import RandomSubsets
from hf_multirate.optim.state_check import check_state
from hf_multirate.optim.updater import ParameterUpdater, moves_parameters


class StepPipeline:
    """Prunes, holds, synchronises, checks and moves the parameters of rate groups, step by step.

    Args:
        config: The rate groups.
        model: The model that owns the parameters.
        optimizer: Their optimizer.
        groups: Rate group name -> parameter name -> parameter.
        sync: What the wrapper of the model asks for.
        compiled: Whether ``torch.compile`` traces the model.

    With a budget the periods of the groups change between steps: see `hf_multirate.auto.planner`.

    Raises:
        ValueError: the optimizer lacks a parameter, or it moves parameters that have no gradient.
        RuntimeError: processes have different configurations or parameters.
        NotImplementedError: the configuration needs whole parameters and they are sharded.
    """

    def __init__(
        self,
        config: MultirateConfig,
        model: nn.Module,
        optimizer: Optimizer,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        sync: GradSync,
        *,
        compiled: bool = False,
    ) -> None:
        self._config = config
        self._compiled = compiled  # hooks that come and go would have it compiled once more
        if not config.is_standard_training:
            zeroes = any(group.idle == "zero" for group in config.groups)
            changes = moves_parameters(config)
            check_optimizer(optimizer, idles=config.prunes, changes=changes, exchanges=zeroes)
        self.shared = SyncedStep(config, sync, groups)
        self.planner = self._planner(model, groups, sync, compiled=compiled)
        signals = None if self.planner is None else self.planner.signals
        self.movement = ParameterUpdater(config, optimizer, groups, signals)
        self._subgroups = RandomSubsets(config, optimizer, groups)
        self._idle_pass = InactiveForward(config, type(optimizer), compiled=compiled, sharded=sync.shards)
        self.costs = StepCosts([group.name for group in config.groups], groups, layers_of(model))
        forecast = CostCheck(model, groups, self.costs, None if config.budget is not None else config.schedule)
        self._pruner = PartialBackward(model, groups, self._idle_pass, compiled=compiled, forecast=forecast)
        had = [p for members in groups.values() for p in members.values() if optimizer.state.get(p)]
        self._parameters = {name: parameter for members in groups.values() for name, parameter in members.items()}
        known = set(self._parameters.values())
        others = {name: parameter for name, parameter in canonical_parameters(model).items() if parameter not in known}
        self._others = frozenset(others)
        self._check = MissingGradientCheck(
            groups,
            model=model,
            strict=config.missing_gradients == "error",
            planned=config.budget is not None,
            had=had,
            others=others,
        )
        self._sensitivities = [SensitivityOfLive(allocator) for allocator in allocators_of(model) if config.prunes]

    def _planner(
        self, model: nn.Module, groups: Mapping[str, Mapping[str, nn.Parameter]], sync: GradSync, *, compiled: bool
    ) -> Planner | None:
        if self._config.budget is None:
            return None
        members = [list(groups[group.name]) for group in self._config.groups]
        work = CountedWork(model, watch=not compiled)
        return Planner(self._config, Account(self._config.budget, members, work, sync.group))

    def plan(self, step: int) -> None:
        """Change the periods, if it is time at ``step``."""
        if self.planner is None:
            return
        self.planner.unread = self._check.silent
        if self.planner.begin(step, self.movement.trust):
            self._adopt(self.planner)

    def _adopt(self, planner: Planner) -> None:
        self.movement.set_schedule(planner.groups, planner.schedule)
        self.shared.set_schedule(planner.schedule)

    def close(self) -> None:
        """Leave nothing on the model, and keep nothing of it."""
        self._idle_pass.close()
        self._check.summarize()
        for sensitivity in self._sensitivities:
            sensitivity.close()
        if self.planner is not None:
            self.planner.account.close()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides model and optimizer."""
        if self.planner is not None:
            self.planner.unread = self._check.silent
        plan = {} if self.planner is None else {"plan": self.planner.state_dict()}
        missed = {"missed": dict.fromkeys(self._check.missed, 1)} if self._check.missed else {}
        return {**self.movement.state_dict(), **missed, **plan}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`, but for what was frozen since.

        Raises:
            ValueError: it is no such state, or one of another model.
        """
        check_state(state)
        moving = {key: entries for key, entries in state.items() if key not in ("plan", "missed")}
        self._check.missed = {
            name: self._parameters[name] for name in state.get("missed", ()) if name in self._parameters
        }
        self.movement.load_state_dict(
            {key: {n: v for n, v in entries.items() if n not in self._others} for key, entries in moving.items()}
        )
        if self.planner is not None and "plan" in state:
            self.planner.load_state_dict(state["plan"])
            self._adopt(self.planner)

    def _names(self, live: Sequence[int]) -> frozenset[str]:
        return frozenset(self._config.groups[i].name for i in live)

    def begin(self, step: int, live: Sequence[int]) -> None:
        """Name the step that begins, and the indices of its live groups."""
        self.shared.begin(self._names(live))
        if self.shared.compares(step):
            plan = {} if self.planner is None else {"the plan": str(self.planner.state_dict())}
            self.shared.compare(step, {**self.movement.rank_fingerprint(), **plan})

    @contextmanager
    def micro_batch(self, step: int, live: Sequence[int], *, last: bool) -> Iterator[None]:
        """A context for forward and backward of one micro-batch; the ``last`` one synchronises gradients on exit."""
        if self.planner is not None:
            self.planner.account.next_pass()
        with (
            self._check.watched(self._names(live)) if self.shared.cuts and not self._compiled else nullcontext(),
            self._pruner.pruned(self._names(live), cuts=self.shared.cuts),
            self.shared.micro_batch(last=last),
            self._subgroups.zeroed(step),
        ):
            yield
        if last:
            self.shared.synchronize()

    def before_step(self, step: int, live: Sequence[int], arguments: Sequence[Any]) -> bool:
        """Check the gradients and the ``arguments`` of ``optimizer.step``, and look at what it will change.

        Returns:
            Whether any parameter has a gradient. Otherwise nothing moves at this step, and `after_step` has no place.
        """
        if not self._config.is_standard_training and any(callable(value) for value in arguments):
            raise ValueError(
                "optimizer.step(closure) runs backward inside of the step, where nothing is pruned or held: call "
                "backward first, then optimizer.step(). Optimizers that need a closure (LBFGS) train plainly only."
            )
        self.shared.require_synchronized(step)
        if self._config.prunes and not self._check.check(self._names(live), step):
            return False
        self.movement.before_step(step, live)
        self._subgroups.before_step(step)
        return True

    @property
    def has_gradients(self) -> bool:
        """Whether any parameter of a rate group has a gradient."""
        return any(parameter.grad is not None for parameter in self._parameters.values())

    def after_step(self, step: int, live: Sequence[int]) -> None:
        """Move what the optimizer has not moved, or not far enough. Not called for a step that was skipped."""
        # A parameter that had no gradient at its turn has no fresh update to drift along.
        with requires_grad_off(list(self._check.missed.values())):
            self.movement.after_step(step, live)
        self._subgroups.after_step(step)
        self._idle_pass.moved(self.movement.moved(step, live))
