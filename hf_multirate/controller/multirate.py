"""The one object with a lifetime: attaches rate groups to a model and an optimizer, and lets go of both."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.validation import require_int, require_step, wrong_type
from hf_multirate.controller.guards import (
    before_save_or_eval,
    check_unattached,
    mark_attached,
    mark_detached,
    require_model,
    unwrap_optimizer,
)
from hf_multirate.controller.standing import Standing
from hf_multirate.controller.step_pipeline import StepPipeline
from hf_multirate.controller.step_timer import StepTimer
from hf_multirate.distributed import GradSync, choose
from hf_multirate.model.blocks import resolved
from hf_multirate.model.partition import left_out, settle
from hf_multirate.model.setup_warnings import drops_layers, warn_of_lost_steps, warn_of_tied_head, warn_of_towers
from hf_multirate.model.unwrap import canonical_parameters, is_compiled, unwrap_model
from hf_multirate.optim.step_hooks import StepHooks


logger = logging.getLogger(__name__)


class Multirate(Standing):
    """Multirate training of one model by one optimizer.

    In a loop of your own, name the step before its first forward pass and leave the rest as it is::

        with Multirate(MultirateConfig.two_rate()).attach(model, optimizer) as multirate:
            for step, batch in enumerate(batches):
                multirate.begin_step(step)
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    Args:
        config: The rate groups.
    """

    def __init__(self, config: MultirateConfig) -> None:
        if not isinstance(config, MultirateConfig):
            wrong_type("config of Multirate", "a MultirateConfig, as MultirateConfig.two_rate() makes one", config)
        super().__init__(config)
        self.telemetry = StepTimer()
        self.applied = 0
        """Steps that the optimizer has applied since `attach`; one that a gradient scaler skipped does not count."""
        self.total_steps: int | None = None
        """The step at which training ends, where it is known: with a budget, short training is planned otherwise."""
        self._optimizer: Optimizer | None = None
        self._live: tuple[int, ...] | None = None
        self._hooks: list[Any] = []
        self._steps: StepHooks | None = None
        self._looks: list[Any] = []
        self._open = ExitStack()
        self._within = ExitStack()
        self._inside = self._moves = False
        self._said: set[str] = set()
        self._corrections = 0

    def assign(self, model: nn.Module) -> Multirate:
        """Find out which parameter of ``model`` is in which rate group, without touching either.

        Raises:
            ValueError: a group matches nothing, or a trainable parameter is in no group.
            FrozenError: that is so because parameters are frozen. It is a `ValueError` too.
        """
        require_model("assign()", model)
        first = self._partition is None
        self._resolved, self._partition = settle(resolved(self.config, model), model)
        self._model = model
        if first:
            warn_of_towers(self._resolved, model)
            warn_of_tied_head(self._resolved, self._partition, model)
            warn_of_lost_steps(self._resolved, self._partition, canonical_parameters(model))
        return self

    def attach(self, model: nn.Module, optimizer: Optimizer) -> Multirate:
        """Take over ``model`` and ``optimizer`` until `detach`, or until the end of a ``with`` block.

        Args:
            model: The model, or what DistributedDataParallel, ``fully_shard`` or ``torch.compile`` made of it.
            optimizer: One torch optimizer that holds every trainable parameter, or Accelerate's wrapper of it.

        Raises:
            ValueError: the groups do not fit the model, the optimizer lacks a parameter, or it moves parameters
                that have no gradient.
            RuntimeError: this controller or another one is attached to the optimizer or the model already, or the
                processes of the run have different configurations or models.
            NotImplementedError: this package does not work with the wrapper of the model, or with its adapter.
        """
        require_model("attach()", model)
        optimizer = unwrap_optimizer(optimizer)
        if self.attached:
            raise RuntimeError("this controller is attached already: call detach() first.")
        check_unattached(optimizer, unwrap_model(model))
        sync = choose(model) if self.active else GradSync()
        compiled = is_compiled(model)
        model = unwrap_model(model)
        self.assign(model)
        self._say(left_out(self.config, self._resolved))
        self._say(drops_layers(model) if self.prunes else None)
        groups = self.partition.parameters(model)
        self._attachment = StepPipeline(self._resolved, model, optimizer, groups, sync, compiled=compiled)
        self._planner = self._attachment.planner
        self._costs = self._attachment.costs
        budget = self.config.budget
        kinds = self._resolved.schedule.kinds
        promised = self._costs.speedup(kinds) if budget is None else 1.0 / budget.share
        self.telemetry = StepTimer(promised, worth=self._attachment.movement.worth)
        self.applied, self.step, self._live, self._corrections = 0, None, None, 0
        self._optimizer = optimizer
        self._steps = StepHooks(optimizer, self._before_optimizer_step, self._after_optimizer_step)
        self._hooks = [self._steps]
        self._looks = before_save_or_eval(model, self._open.close)
        mark_attached(optimizer, model)
        return self

    def _say(self, text: str | None) -> None:
        if text is not None and text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def detach(self) -> None:
        """Leave model and optimizer as they were found; does nothing when not attached."""
        self._open.close()
        self._look_away()
        for hook in self._hooks:
            hook.remove()
        if self._optimizer is not None and self._model is not None:
            mark_detached(self._optimizer, self._model)
            self._attachment.close()
        self._hooks, self._optimizer, self._live = [], None, None

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle is that of a controller that has let go of its model and optimizer."""
        kept = {name: value for name, value in vars(self).items() if name != "_attachment"}
        free: dict[str, Any] = {
            "_optimizer": None,
            "_live": None,
            "_hooks": [],
            "_looks": [],
            "_steps": None,
            "_open": ExitStack(),
            "_within": ExitStack(),
            "_inside": False,
        }
        return kept | free

    def __enter__(self) -> Multirate:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def begun(self) -> bool:
        """Whether a step was begun, and the optimizer has not taken it yet."""
        return self._live is not None

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""
        return self._steps is not None and self._steps.inside

    @property
    def attached(self) -> bool:
        """Whether the controller has a model and an optimizer in its hands."""
        return self._optimizer is not None

    def controls(self, optimizer: Optimizer) -> bool:
        """Whether ``optimizer``, or what Accelerate has wrapped in it, is the one that is attached."""
        return self._optimizer is not None and unwrap_optimizer(optimizer) is self._optimizer

    def begin_step(self, step: int) -> None:
        """Prune backward for the optimizer step ``step``, until `synchronize` or ``optimizer.step()``.

        Call it before the first forward pass of a step. With gradient accumulation it may be called before each
        micro-batch, always with the same number. It is over early when the model is saved, or evaluated without
        gradients: both see its parameters as they are.

        Args:
            step: Index of the optimizer step, counted from 0 and going on where it was when a run resumes.

        Raises:
            RuntimeError: the controller is not attached.
            ValueError: the step is negative.
            TypeError: the step is no integer.
        """
        self._require_attached("begin_step()")
        step = require_step(step)
        if self._live is None or step != self.step:
            self._attachment.shared.require_wrapper()
            self._open.close()
            self.select(step)
        if not self._looks and self._model is not None:
            self._looks = before_save_or_eval(self._model, self._open.close)
        if not self._inside:
            self._open.enter_context(self.micro_batch())

    def select(self, step: int) -> None:
        """Choose the live groups of ``step`` without pruning anything: see `micro_batch`."""
        self._require_attached("begin_step()")
        step = require_step(step)
        self._look_away()  # nothing is open beyond a micro-batch
        if self._planner is not None:
            total = self.total_steps
            self._planner.total_steps = None if total is None else require_int("total_steps", total, least=0)
        self._attachment.plan(step)
        self.step, self._live = step, self.schedule.live(step)
        self._attachment.begin(step, self._live)
        self.telemetry.start()

    @contextmanager
    def micro_batch(self, last: bool = False) -> Iterator[None]:
        """A context for forward and backward of one micro-batch; parameters have flags and values back on exit.

        It is over early when the optimizer takes its step inside of it.

        Args:
            last: Whether to `synchronize` on exit: nothing is accumulated after this micro-batch.
        """
        if self._live is None or self.step is None:
            yield
            return
        self._inside = True
        if self._steps is not None:
            self._steps.reset()
        try:
            with ExitStack() as within:
                within.enter_context(self._attachment.micro_batch(self.step, self._live, last=last))
                self._within = within
                yield
        finally:
            self._inside = False

    def synchronize(self) -> None:
        """Average the gradients of a fast-only step over all processes, once the last of them is there.

        Needed in a loop of your own with DistributedDataParallel, which does no more than that at full steps: call it
        at every step, after the last backward pass and before gradients are clipped.
        """
        self._require_attached("synchronize()")
        self._end_pass()
        self._attachment.shared.synchronize()

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer
        self._end_pass()
        self._moves = False
        if self._live is None or self.step is None:
            if not self._attachment.has_gradients:
                return  # of a batch that was given up: nothing moves
            raise RuntimeError("optimizer.step() without begin_step(step): which groups were live is not known.")
        self._look_away()
        self._moves = self._attachment.before_step(self.step, self._live, (*args[1:], *kwargs.values()))

    def _end_pass(self) -> None:
        """Give parameters their flags and values back, wherever the pass was begun."""
        self._open.close()
        self._within.close()

    def _look_away(self) -> None:
        """Leave no hook on the model: nothing of it is changed now that anybody could see."""
        for look in self._looks:
            look.remove()
        self._looks = []

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        if self._live is None or self.step is None:
            return
        if not self._moves and self.full:
            self._live = None  # no group had its turn: the next step is the full one
            return
        # A gradient scaler leaves this note for optimizers that skip a step by themselves, such as fused AdamW.
        overflow = vars(optimizer).get("found_inf")
        if overflow is None or not overflow.item():
            if self._moves:
                self._attachment.after_step(self.step, self._live)
            self.applied += 1
            self._correct_costs()
            self.telemetry.stop(full=self.full, predicted_cost=self.relative_cost)
        self._live = None
        self._attachment.shared.end()

    def _correct_costs(self) -> None:
        """Take over what was seen of backward at the first step of a kind."""
        costs = self._attachment.costs
        if self.config.budget is None and costs.corrections > self._corrections:
            self._corrections = costs.corrections
            self.telemetry.speedup_predicted = costs.speedup(self._resolved.schedule.kinds)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint needs besides model and optimizer, by parameter name; call it while attached."""
        self._require_attached("state_dict()")
        return self._attachment.state_dict()

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over a `state_dict`; call it after `attach`."""
        self._require_attached("load_state_dict()")
        self._attachment.load_state_dict(state)

    def _require_attached(self, caller: str) -> None:
        if not self.attached:
            raise RuntimeError(f"{caller} needs a model and an optimizer: call attach(model, optimizer) first.")
