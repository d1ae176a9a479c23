"""The controller of averaged copies: train copies of one network with different step sizes and average them.

The copies are tensors, not modules. During a step the model contains the values of the copy that takes
the step, between steps those of the fastest copy. So hooks, wrappers, modes and other attributes of
modules exist only once, and no module has to be deep-copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.averaged_copies.config import CopiesConfig
from hf_multirate.averaged_copies.store import CopyStore
from hf_multirate.config.validation import require_step, wrong_type
from hf_multirate.controller.guards import (
    before_save_or_eval,
    check_unattached,
    mark_attached,
    mark_detached,
    require_model,
    unwrap_optimizer,
)
from hf_multirate.distributed.unsupported import check_whole_parameters
from hf_multirate.model.unwrap import unwrap_model
from hf_multirate.optim.optimizer_check import check_optimizer, require_rates
from hf_multirate.optim.scaled_rates import ScaledRates
from hf_multirate.optim.skipped_step import Overflow
from hf_multirate.optim.step_hooks import StepHooks


class AveragedCopies:
    """Trains copies of a model with different step sizes, and averages them at common times.

    In a custom training loop::

        with AveragedCopies(CopiesConfig((1, 25))).attach(model, optimizer) as copies:
            for step, batch in enumerate(batches):
                copies.begin_step(step)
                model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

    Between steps, and when it is saved or evaluated without gradients, the model contains the fastest copy. After each
    common time, that copy is the average.

    Args:
        config: Settings of the copies.
    """

    def __init__(self, config: CopiesConfig) -> None:
        if not isinstance(config, CopiesConfig):
            wrong_type("config of AveragedCopies", "a CopiesConfig", config)
        self.config = config
        self.applied_steps = 0
        """Number of steps that the optimizer has applied since `attach`."""
        self.step: int | None = None
        """Index of the last step that has begun; None before the first step."""
        self._begun = self._inside = False
        self._optimizer: Optimizer | None = None
        self._store: CopyStore | None = None
        self._hooks: list[Any] = []
        self._steps: StepHooks | None = None
        self._save_hooks: list[Any] = []
        self._rates: ScaledRates | None = None
        self._taken: int | None = None
        """Index of the last step that was taken since `attach` or `load_state_dict`."""
        self._overflow: Overflow | None = None

    def attach(self, model: nn.Module, optimizer: Optimizer) -> AveragedCopies:
        """Attach to ``model`` and ``optimizer`` until `detach`. All copies start with the values of the model.

        Returns:
            The controller itself.

        Raises:
            ValueError: a parameter has no values, no parameter is trainable, or the optimizer has no learning rate.
            RuntimeError: a controller is attached to the model or the optimizer already.
            NotImplementedError: the model is sharded, or replicated in one process.
        """
        require_model("attach()", model)
        check_whole_parameters(model)
        optimizer, model = unwrap_optimizer(optimizer), unwrap_model(model)
        if self.attached:
            raise RuntimeError("these copies are attached already. Call detach() first.")
        check_unattached(optimizer, model)
        require_rates(optimizer, "slow copies cannot take longer steps")
        check_optimizer(optimizer, idles=False, changes=True, exchanges=True)
        self._store = CopyStore(model, optimizer, len(self.config.periods))
        self._optimizer, self._rates = optimizer, ScaledRates(optimizer)
        self.applied_steps, self.step, self._taken, self._begun = 0, None, None, False
        self._steps = StepHooks(optimizer, self._before_optimizer_step, self._after_optimizer_step)
        self._hooks = [self._steps]
        self._save_hooks = before_save_or_eval(model, self._show_fastest, self._show_begun)
        mark_attached(optimizer, model)
        self._model = model
        return self

    def detach(self) -> None:
        """Detach: the model keeps the values of the fastest copy, the optimizer its state.

        Does nothing if the controller is not attached.
        """
        if self._optimizer is None or self._store is None:
            return
        self._store.show(0)
        self._restore_rates()
        for hook in [*self._hooks, *self._save_hooks]:
            hook.remove()
        mark_detached(self._optimizer, self._model)
        self._hooks, self._save_hooks, self._optimizer, self._store = [], [], None, None

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which are detached."""
        attributes = {name: value for name, value in vars(self).items() if name != "_model"}
        detached: dict[str, Any] = {
            "_optimizer": None,
            "_store": None,
            "_hooks": [],
            "_save_hooks": [],
            "_steps": None,
            "_rates": None,
            "_overflow": None,
        }
        return attributes | detached | {"_begun": False, "_inside": False}

    def __enter__(self) -> AveragedCopies:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def begun(self) -> bool:
        """Whether a step has begun that the optimizer has not taken yet."""
        return self._begun

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""
        return self._steps is not None and self._steps.inside

    @property
    def attached(self) -> bool:
        """Whether the controller is attached to a model and an optimizer."""
        return self._optimizer is not None

    def controls(self, optimizer: Optimizer) -> bool:
        """Whether the controller is attached to ``optimizer``, which may be wrapped by Accelerate."""
        return self._optimizer is not None and unwrap_optimizer(optimizer) is self._optimizer

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training: always true."""
        return True

    @property
    def phase(self) -> int:
        """Position of the present step in the cycle, which ends with an average of all copies."""
        return 0 if self.step is None else self.step % self.config.cycle

    def begin_step(self, step: int) -> None:
        """Put the values of the copy that takes optimizer step ``step`` into the model.

        Args:
            step: Index of the optimizer step from 0, the same for all accumulated micro-batches. A resumed run
                continues the count.

        Raises:
            RuntimeError: the controller is not attached.
            ValueError: ``step`` is negative, or not above the last step that was taken.
            TypeError: ``step`` is not an integer.
        """
        store = self._attached_store("begin_step()")
        self.set_step(step)
        store.show(self.config.turn(step)[0])

    def set_step(self, step: int) -> None:
        """Set the copy of ``step``. Its values are put into the model within `micro_batch` only.

        Raises:
            RuntimeError: the controller is not attached.
            ValueError: ``step`` is negative, or not above the last step that was taken.
            TypeError: ``step`` is not an integer.
        """
        self._attached_store("begin_step()")
        self.step, self._begun = require_step(step, self._taken), True
        if self._steps is not None:
            self._steps.reset()
        if not self._save_hooks:
            self._save_hooks = before_save_or_eval(self._model, self._show_fastest, self._show_begun)

    def _show_fastest(self) -> None:
        # Within micro_batch the model keeps the copy of the step, also for a forward pass without gradients.
        if self._store is not None and not self._inside:
            self._store.show(0)

    def _show_begun(self) -> None:
        if self._store is not None and self._begun and not self._inside and self.step is not None:
            self._store.show(self.config.turn(self.step)[0])

    @contextmanager
    def micro_batch(self, last: bool = False) -> Iterator[None]:
        """A context for forward and backward of one micro-batch with the copy of the step.

        On exit, the model contains the fastest copy.
        """
        del last
        store = self._attached_store("micro_batch()")
        self._inside = True
        try:
            if self.step is not None:
                store.show(self.config.turn(self.step)[0])
            yield
        finally:
            self._inside = False
            store.show(0)

    def _before_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        self._restore_rates()  # of a step that raised an error
        self._overflow = Overflow(optimizer)
        if self.step is None or not self._begun:
            if all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"]):
                return  # the training step skipped its batch, so nothing moves
            raise RuntimeError(
                "optimizer.step() was called without begin_step(step), so the copy of the step is unknown. Call "
                "begin_step(step) before the first forward pass of each step."
            )
        copy, _ = self.config.turn(self.step)
        self._attached_store("step()").show(copy)
        if self._rates is not None:
            for index in range(len(optimizer.param_groups)):
                self._rates.scale(index, self.config.periods[copy])

    def _after_optimizer_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del optimizer, args, kwargs
        overflow, self._overflow = self._overflow, None
        self._restore_rates()
        if not self._begun:
            return
        store, self._begun = self._attached_store("step()"), False
        store.show(0)
        for hook in self._save_hooks:
            hook.remove()
        self._save_hooks = []
        if overflow is not None and overflow.found():
            return
        assert self.step is not None  # checked before the step
        self.applied_steps, self._taken = self.applied_steps + 1, self.step
        merged = self.config.turn(self.step)[1]
        if merged:
            store.average(merged, momenta=self.config.momenta, buffers=self.config.buffers)

    def _restore_rates(self) -> None:
        if self._rates is not None:
            self._rates.restore()

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: values and optimizer states of all copies except the fastest one.

        The model and its optimizer contain those of the fastest copy.
        """
        return self._attached_store("state_dict()").state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a `state_dict`. Call it after `attach`.

        Raises:
            ValueError: ``state`` has another number of copies, or belongs to another model.
        """
        self._attached_store("load_state_dict()").load_state_dict(state)
        self._taken = None

    def _attached_store(self, caller: str) -> CopyStore:
        if self._store is None:
            raise RuntimeError(f"{caller} needs a model and an optimizer. Call attach(model, optimizer) first.")
        return self._store
