"""The parts of a step in their order. A pipeline exists only while a model and an optimizer are attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.backward.cost_check import CostCheck
from hf_multirate.backward.frozen_forward import FrozenForward
from hf_multirate.backward.idle_forward import InactiveForward
from hf_multirate.backward.missing_gradients import MissingGradientCheck
from hf_multirate.backward.partial_backward import PartialBackward
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Step
from hf_multirate.controller.guards import before_save_or_eval
from hf_multirate.distributed import GradSync, sync_for
from hf_multirate.distributed.synced_step import SyncedStep, require_wrapper
from hf_multirate.model.cost_model import StepCosts, layers_of
from hf_multirate.model.step_part import StepPart
from hf_multirate.model.unwrap import canonical_parameters, is_compiled, unwrap_model
from hf_multirate.optim.adalora import AdaLoraUpdate, rank_allocators
from hf_multirate.optim.learning_rates import LearningRates
from hf_multirate.optim.optimizer_check import check_optimizer, require_rates
from hf_multirate.optim.random_subsets import RandomSubsets
from hf_multirate.optim.skipped_step import Overflow
from hf_multirate.optim.state_check import check_state
from hf_multirate.optim.step_hooks import StepHooks
from hf_multirate.optim.updater import ParameterUpdater, moves_parameters


@dataclass(frozen=True)
class Members:
    """Parameters of a run by rate group.

    Attributes:
        groups: Rate group name -> parameter name -> parameter, in the order of the configuration.
        never: Name -> parameter that never gets a gradient.
        factors: Parameter -> factor on its learning rate.
    """

    groups: Mapping[str, Mapping[str, nn.Parameter]]
    never: Mapping[str, nn.Parameter]
    factors: Mapping[nn.Parameter, float]


class StepPipeline:
    """Calls the configured parts of each step in their order.

    Args:
        config: The rate groups.
        model: The model that owns the parameters, possibly wrapped by DistributedDataParallel, ``fully_shard`` or
            ``torch.compile``.
        optimizer: The optimizer of the parameters.
        members: The parameters by rate group.
        applied: Called after each step that the optimizer has applied.

    Raises:
        ValueError: the optimizer lacks a parameter, or it moves parameters without a gradient.
        RuntimeError: processes have different configurations or parameters.
        NotImplementedError: the wrapper or an adapter of the model is not supported.
    """

    def __init__(
        self,
        config: MultirateConfig,
        model: nn.Module,
        optimizer: Optimizer,
        members: Members,
        applied: Callable[[Step], None],
    ) -> None:
        compiled = is_compiled(model)
        sync = GradSync() if config.is_standard_training else sync_for(model)
        model = unwrap_model(model)
        self._config, self._model, self._sync = config, model, sync
        groups, self._never = members.groups, members.never
        self.optimizer = optimizer
        self.step: Step | None = None
        """The step that has begun and that the optimizer has not taken yet."""
        self.activation_cache: ActivationCache | None = None
        self._applied = applied
        self._parameters = {name: parameter for group in groups.values() for name, parameter in group.items()}
        if not config.is_standard_training:
            subsets = any(group.random_subset is not None for group in config.groups)
            changes = moves_parameters(config)
            check_optimizer(optimizer, idles=config.skips_backward, changes=changes, exchanges=subsets)
        self.costs = StepCosts([group.name for group in config.groups], groups, layers_of(model), self._never)
        self._synced = SyncedStep(config, sync, groups, self._fingerprint) if type(sync) is not GradSync else None
        self._check = self._missing_gradients(groups, compiled=compiled)
        self.rates = LearningRates(optimizer, config.groups, groups, members.factors)
        if self.rates.scales:
            require_rates(optimizer, "it cannot be scaled")
        self.updater = ParameterUpdater(config, optimizer, groups, self.rates, self._missed)
        self._parts = self._configured(groups, compiled=compiled)
        # Each list holds only the parts that override the method.
        self._begins = [p.begin for p in self._parts if type(p).begin is not StepPart.begin]
        self._contexts = [p.micro_batch for p in self._parts if type(p).micro_batch is not StepPart.micro_batch]
        self._befores = [p.before_step for p in self._parts if type(p).before_step is not StepPart.before_step]
        self._afters = [p.after_step for p in self._parts if type(p).after_step is not StepPart.after_step]
        self._ends = [p.end for p in self._parts if type(p).end is not StepPart.end]
        self._inside = self._has_gradients = False
        self._overflow: Overflow | None = None
        self._open, self._within = ExitStack(), ExitStack()
        self._hooks = StepHooks(optimizer, self._before_step, self._after_step)
        self._save_hooks = before_save_or_eval(model, self._open.close)

    def _configured(self, groups: Mapping[str, Mapping[str, nn.Parameter]], *, compiled: bool) -> list[StepPart]:
        """The parts that the configuration needs, in the order of their calls."""
        config, model = self._config, self._model
        sharded, moved = self._sync.shards, self.updater.moved
        inactive = InactiveForward(config, type(self.optimizer), compiled=compiled, sharded=sharded, moved=moved)
        parts: list[StepPart] = [] if self._check is None else [self._check]
        if config.skips_backward:
            check = CostCheck(model, groups, self.costs, config.schedule)
            backward = PartialBackward(model, groups, inactive, compiled=compiled, cost_check=check, cuts=self._cuts)
            parts += [inactive, backward]
        if self._never:
            parts.append(FrozenForward(model, self._never, groups, inactive, compiled=compiled))
        if self._synced is not None:
            parts.append(self._synced)
        parts += [self.updater, *([self.rates] if self.rates.scales else [])]
        if any(group.random_subset is not None for group in config.groups):
            parts.append(RandomSubsets(config, self.optimizer, groups))
        if config.skips_backward:
            parts += [AdaLoraUpdate(allocator) for allocator in rank_allocators(model)]
        return parts

    def _missing_gradients(
        self, groups: Mapping[str, Mapping[str, nn.Parameter]], *, compiled: bool
    ) -> MissingGradientCheck | None:
        grouped = {*self._parameters.values(), *self._never.values()}
        others = {name: p for name, p in canonical_parameters(self._model).items() if p not in grouped}
        self._ungrouped = frozenset({*others, *self._never})
        if not self._config.skips_backward:
            return None
        return MissingGradientCheck(
            groups,
            model=self._model,
            strict=self._config.on_missing_gradient == "error",
            cuts=lambda: self._cuts() and not compiled,
            had=[parameter for parameter in self._parameters.values() if self.optimizer.state.get(parameter)],
            others=others,
        )

    def _cuts(self) -> bool:
        return self._synced is None or self._synced.cuts()

    def _missed(self) -> list[nn.Parameter]:
        return [] if self._check is None else list(self._check.missed.values())

    def _fingerprint(self) -> dict[str, str]:
        return self.updater.rank_fingerprint()

    def add_cache(self, cache: ActivationCache) -> None:
        """Add an activation cache, which needs no call at a step, to be closed with the parts."""
        self.activation_cache = cache
        self._parts.append(cache)

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""
        return self._hooks.inside

    def begin(self, step: Step) -> None:
        """Begin ``step``. The model does not change before `micro_batch`.

        Raises:
            RuntimeError: there are several processes and the model has no wrapper.
        """
        require_wrapper(self._config, self._sync)
        self._remove_save_hooks()  # no context is open outside of a micro-batch
        self.step = step
        for begin in self._begins:
            begin(step)

    def open(self, step: Step) -> None:
        """Begin ``step`` and open its micro-batch context, which the step of the optimizer closes."""
        if self.step is None or step.index != self.step.index:
            self._open.close()
            self.begin(step)
        if not self._save_hooks:
            self._save_hooks = before_save_or_eval(self._model, self._open.close)
        if not self._inside:
            self._open.enter_context(self.micro_batch(last=False))

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """A context for forward and backward of one micro-batch.

        Args:
            last: Whether this is the last micro-batch of the step; False if that is unknown.
        """
        if self.step is None:
            yield
            return
        self._inside = True
        self._hooks.reset()
        try:
            with ExitStack() as within:
                for context in self._contexts:
                    within.enter_context(context(self.step, last=last))
                self._within = within
                yield
        finally:
            self._inside = False

    def synchronize(self) -> None:
        """Average the gradients of a fast step over all processes."""
        self._end_pass()
        if self._synced is not None:
            self._synced.synchronize()

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._end_pass()
        self._has_gradients = False
        self._overflow = Overflow(optimizer)
        if self.step is None:
            if all(parameter.grad is None for parameter in self._parameters.values()):
                return  # the training step skipped its batch, so nothing moves
            raise RuntimeError(
                "optimizer.step() was called without begin_step(step), so the live groups are unknown. Call "
                "begin_step(step) before the first forward pass of each step."
            )
        self._remove_save_hooks()
        values = (*args[1:], *kwargs.values())
        if not self._config.is_standard_training and any(callable(value) for value in values):
            raise ValueError(
                "optimizer.step(closure) runs backward inside of the step, where backward cannot be skipped. Call "
                "backward first, then optimizer.step(). Optimizers that need a closure (LBFGS) work only with "
                "standard training."
            )
        step = self.step
        self._has_gradients = all(before(step) for before in self._befores)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        step, overflow = self.step, self._overflow
        self._overflow = None
        if step is None:
            return
        self.step = None
        if not self._has_gradients and step.full:
            return  # without gradients a full step does not count: the next step is a full step
        if overflow is None or not overflow.found():
            if self._has_gradients:
                for after in self._afters:
                    after(step)
            self._applied(step)
        for end in self._ends:
            end()

    def _end_pass(self) -> None:
        """Close the micro-batch contexts, which restores ``requires_grad`` and values of parameters."""
        self._open.close()
        self._within.close()

    def _remove_save_hooks(self) -> None:
        """Remove the hooks for saving and evaluation, which have nothing to restore outside of a micro-batch."""
        for hook in self._save_hooks:
            hook.remove()
        self._save_hooks = []

    def close(self) -> None:
        """Remove all hooks from model and optimizer, and close all parts."""
        self._open.close()
        self._remove_save_hooks()
        self._hooks.remove()
        for part in self._parts:
            part.close()

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint besides model and optimizer."""
        missed = {} if self._check is None else dict.fromkeys(self._check.missed, 1)
        return {**self.updater.state_dict(), **({"missed": missed} if missed else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`, without the entries of parameters that are frozen now.

        Raises:
            ValueError: ``state`` is damaged, or belongs to another model.
        """
        check_state(state)
        if self._check is not None:
            missed = state.get("missed", ())
            self._check.missed = {name: self._parameters[name] for name in missed if name in self._parameters}
        self.updater.load_state_dict(
            {
                key: {name: value for name, value in entries.items() if name not in self._ungrouped}
                for key, entries in state.items()
                if key != "missed"
            }
        )
