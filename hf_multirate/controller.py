"""The one object with a lifetime: attaches rate groups to a model and an optimizer, and lets go of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.advice import warn_of_lost_steps, warn_of_tied_head
from hf_multirate.attachment import Attachment
from hf_multirate.auto.blocks import resolved
from hf_multirate.chunks import predicts_next, split
from hf_multirate.config import MultirateConfig
from hf_multirate.cost import layers_of, predicted_speedup, relative_costs
from hf_multirate.distributed import GradSync, choose, is_compiled, unwrapped
from hf_multirate.lease import innermost, lease, release, require_free
from hf_multirate.names import named
from hf_multirate.onlookers import on_look
from hf_multirate.partition import assign
from hf_multirate.standing import Standing
from hf_multirate.step_hooks import StepHooks
from hf_multirate.telemetry import Telemetry


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
        super().__init__(config)
        self.telemetry = Telemetry()
        self.applied = 0
        """Steps that the optimizer has applied since `attach`; one that a gradient scaler skipped does not count."""
        self.total_steps: int | None = None
        """The step at which training ends, where it is known: with a budget, short training is planned otherwise."""
        self._optimizer: Optimizer | None = None
        self._live: tuple[int, ...] | None = None
        self._hooks: list[Any] = []
        self._open = ExitStack()
        self._inside = self._split = False

    def assign(self, model: nn.Module) -> Multirate:
        """Find out which parameter of ``model`` is in which rate group, without touching either.

        Raises:
            ValueError: a group matches nothing, or a trainable parameter is in no group.
        """
        first = self._partition is None
        self._resolved = resolved(self.config, model)
        self._partition = assign(self._resolved, model)
        self._model = model
        if first:
            warn_of_tied_head(self._resolved, self._partition, model)
            warn_of_lost_steps(self._resolved, self._partition, named(model))
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
            NotImplementedError: the model is wrapped by something that this package does not work with.
        """
        optimizer = innermost(optimizer)
        if self.attached:
            raise RuntimeError("this controller is attached already: call detach() first.")
        require_free(optimizer, unwrapped(model))
        sync = choose(model) if self.active else GradSync()
        compiled = is_compiled(model)
        model = unwrapped(model)
        self.assign(model)
        groups = self.partition.parameters(model)
        self._attachment = Attachment(self._resolved, model, optimizer, groups, sync, compiled=compiled)
        self._planner = self._attachment.planner
        self._costs = relative_costs(self._resolved, self.partition, layers_of(model))
        budget = self.config.budget
        promised = predicted_speedup(self._costs) if budget is None else 1.0 / budget.share
        self.telemetry = Telemetry(promised, worth=self._attachment.movement.worth)
        self.applied, self.step, self._live = 0, None, None
        self._optimizer = optimizer
        self._steps = StepHooks(optimizer, self._before_optimizer_step, self._after_optimizer_step)
        self._hooks = [self._steps, *on_look(model, self._open.close)]
        lease(optimizer, model)
        return self

    def detach(self) -> None:
        """Leave model and optimizer as they were found; does nothing when not attached."""
        self._open.close()
        for hook in self._hooks:
            hook.remove()
        if self._optimizer is not None and self._model is not None:
            release(self._optimizer, self._model)
            self._attachment.close()
        self._hooks, self._optimizer, self._live = [], None, None

    def __enter__(self) -> Multirate:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the controller has a model and an optimizer in its hands."""
        return self._optimizer is not None

    def begin_step(self, step: int) -> None:
        """Prune backward for the optimizer step ``step``, until `synchronize` or ``optimizer.step()``.

        Call it before the first forward pass of a step. With gradient accumulation it may be called before each
        micro-batch, always with the same number. It is over early when the model is saved, or evaluated without
        gradients: both see its parameters as they are.

        Args:
            step: Index of the optimizer step, counted from 0 and going on where it was when a run resumes.

        Raises:
            RuntimeError: the controller is not attached.
        """
        self._require_attached("begin_step()")
        if self._live is None or step != self.step:
            self._attachment.shared.require_wrapper()
            self._open.close()
            self.select(step)
        if not self._inside:
            self._open.enter_context(self.micro_batch())

    def select(self, step: int) -> None:
        """Choose the live groups of ``step`` without pruning anything: see `micro_batch`."""
        self._require_attached("begin_step()")
        if step < 0:
            raise ValueError(f"a step index counts from 0, got {step}.")
        if self._planner is not None:
            self._planner.total_steps = self.total_steps
        self._attachment.plan(step)
        self.step, self._live, self._split = step, self.schedule.live(step), False
        self._attachment.begin(step, self._live)
        self.telemetry.start()

    @contextmanager
    def micro_batch(self, last: bool = False) -> Iterator[None]:
        """A context for forward and backward of one micro-batch; parameters have flags and values back on exit.

        Args:
            last: Whether to `synchronize` on exit: nothing is accumulated after this micro-batch.
        """
        if self._live is None or self.step is None:
            yield
            return
        self._inside = True
        self._steps.reset()
        try:
            with self._attachment.micro_batch(self.step, self._live, last=last):
                yield
        finally:
            self._inside = False

    def split(self, batch: Any) -> list[tuple[Any, float]]:
        """Parts of ``batch`` to run one after the other, with the share of its rows that each has.

        It is one part unless ``refresh_chunks`` asks for more and more than the fast groups are live. In a loop of
        your own::

            for part, share in multirate.split(batch):
                (model(**part).loss * share).backward()

        Raises:
            ValueError: the batch has no rows: see `hf_multirate.chunks.split`.
        """
        fast = sum(group.gradient_period == 1 for group in self.config.groups)
        if self.config.budget is not None:
            fast = 1  # which has period 1 in whatever plan
        self._split = True
        if self._live is None or len(self._live) <= fast or self.config.refresh_chunks == 1:
            return [(batch, 1.0)]
        shifted = self._model is not None and predicts_next(self._model)
        return split(batch, self.config.refresh_chunks, shifted=shifted)

    def synchronize(self) -> None:
        """Average the gradients of a fast-only step over all processes, once the last of them is there.

        Needed in a loop of your own with DistributedDataParallel, which does no more than that at full steps: call it
        at every step, after the last backward pass and before gradients are clipped.
        """
        self._require_attached("synchronize()")
        self._open.close()
        self._attachment.shared.synchronize()

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer
        self._open.close()
        if self._live is None or self.step is None:
            raise RuntimeError("optimizer.step() without begin_step(step): which groups were live is not known.")
        if self.config.refresh_chunks > 1 and not self._split:
            raise RuntimeError(
                f"refresh_chunks is {self.config.refresh_chunks}, but no batch was split: run forward and backward "
                "for each of split(batch), as in its documentation, or leave refresh_chunks at 1."
            )
        self._attachment.before_step(self.step, self._live, (*args[1:], *kwargs.values()))

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        assert self._live is not None  # checked before the step
        assert self.step is not None
        # A gradient scaler leaves this note for optimizers that skip a step by themselves, such as fused AdamW.
        overflow = vars(optimizer).get("found_inf")
        if overflow is None or not overflow.item():
            self._attachment.after_step(self.step, self._live)
            self.applied += 1
            self.telemetry.stop(full=self.full, predicted_cost=self.relative_cost)
        self._live = None
        self._attachment.shared.end()

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
