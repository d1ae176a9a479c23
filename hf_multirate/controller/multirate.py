"""`Multirate`, the controller: attaches to a model and an optimizer for a training run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.config.stages import ends_of_run
from hf_multirate.config.validation import require_step, wrong_type
from hf_multirate.controller.frozen_groups import WRAPPED_TOO_EARLY, FrozenGroups
from hf_multirate.controller.guards import check_unattached, require_model, unwrap_optimizer
from hf_multirate.controller.run_stages import Attachment, RunStages
from hf_multirate.controller.step_span import DeviceSpan, gpu_of
from hf_multirate.controller.step_timer import StepTimer
from hf_multirate.model.partition import Partition
from hf_multirate.model.stages import SettledStage
from hf_multirate.model.unwrap import ddp_wrappers, unwrap_model
from hf_multirate.optim.loss_decrease import LossDecreaseAverages
from hf_multirate.optim.parameter_groups import check_state_of_groups


logger = logging.getLogger(__name__)


NO_TRAIN_TIME = (
    "train_time of the configuration applies to MultirateTrainer only. A custom training loop ends by itself: leave "
    "train_time out of the configuration."
)
NO_HEAD_START = (
    "head_start of the configuration applies to MultirateTrainer only. In a custom training loop, call "
    "hf_multirate.head_start(model, batches) before attach(), and leave head_start out of the configuration."
)


class Multirate:
    """Multirate training of one model with one optimizer.

    In a custom training loop, call `begin_step` before the first forward pass of each step::

        with Multirate(MultirateConfig()).attach(model, optimizer) as multirate:
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
        self.config = config
        self.timing = StepTimer()
        """Seconds of full and fast steps, and the resulting speed-up."""
        self.applied_steps = 0
        """Number of steps applied since `attach`, without the steps that a gradient scaler skipped."""
        self.cache_folder: str | None = None
        """Folder of an activation cache on disk, unless the configuration names one."""
        self._run = RunStages(config)
        self._step: Step | None = None
        self._taken: int | None = None
        """Index of the last step that was taken since `attach` or `load_state_dict`."""
        self._warned: set[str] = set()
        self._frozen = FrozenGroups()

    def assign(self, model: nn.Module) -> Multirate:
        """Sort the parameters of ``model`` into rate groups. The model is not changed.

        Returns:
            The controller itself.

        Raises:
            ValueError: a group matches no parameter, a trainable parameter is in no group, or the model has no head
                or depth for the learning rates of the configuration.
            FrozenError: a subclass of `ValueError`, if frozen parameters are the reason.
        """
        require_model("assign()", model)
        self._run.settle(self.config, model, self._warn)
        return self

    def freeze_never(self, model: nn.Module) -> Multirate:
        """Switch ``requires_grad`` off for the groups with period ``"never"``, until `thaw_never`.

        `attach` does this until `detach`. Call this method first if the model will be wrapped by
        DistributedDataParallel, which has to know the frozen parameters::

            multirate = Multirate(config).freeze_never(model)
            optimizer = AdamW(multirate_parameter_groups(model, config, lr=2e-5))
            multirate.attach(DistributedDataParallel(model), optimizer)

        Returns:
            The controller itself.

        Raises:
            ValueError: the groups do not fit the model.
        """
        require_model("freeze_never()", model)
        self._freeze_never(unwrap_model(model))
        self._frozen.until_detach = False
        return self

    def _freeze_never(self, model: nn.Module) -> bool:
        """As `freeze_never`; returns whether a parameter was on."""
        if self._frozen.model is model:  # a wrapper such as fully_shard may have replaced the parameters
            self._frozen.freeze(model, self.partition.never_names)
        self.assign(model)
        return self._frozen.freeze(model, self.partition.never_names)

    def thaw_never(self) -> None:
        """Switch ``requires_grad`` on again for the parameters of `freeze_never`."""
        self._frozen.restore()

    def attach(self, model: nn.Module, optimizer: Optimizer, total_steps: int | None = None) -> Multirate:
        """Attach to ``model`` and ``optimizer`` until `detach`, or until the end of a ``with`` block.

        Args:
            model: The model, possibly wrapped by DistributedDataParallel, ``fully_shard`` or ``torch.compile``.
            optimizer: One torch optimizer with every trainable parameter, possibly wrapped by Accelerate.
            total_steps: Number of optimizer steps of the whole run, which a configuration with stages needs.

        Returns:
            The controller itself.

        Raises:
            ValueError: the groups do not fit the model, the optimizer lacks a parameter, it moves parameters without a
                gradient, it has loaded the state of other parameter groups, or ``total_steps`` is missing.
            RuntimeError: a controller is attached to the model or the optimizer already, or the processes of the run
                have different configurations or models.
            NotImplementedError: the wrapper or an adapter of the model is not supported.
        """
        require_model("attach()", model)
        optimizer = unwrap_optimizer(optimizer)
        if self.attached:
            raise RuntimeError("this controller is attached already. Call detach() first.")
        check_unattached(optimizer, unwrap_model(model))
        check_state_of_groups(optimizer, model)
        self._run.ends = ends_of_run(self.config.stage_list, total_steps, self._warn)
        frozen_before = self._frozen.model is unwrap_model(model)
        switched = self._freeze_never(unwrap_model(model))
        if not frozen_before:
            self._frozen.until_detach = self._frozen.model is not None
        try:
            if switched and not frozen_before and ddp_wrappers(model):
                raise ValueError(WRAPPED_TOO_EARLY.format(groups=list(self.partition.never)))
            costs = self._run.attach(Attachment(model, optimizer, self._after_applied, self.cache_folder), self._warn)
        except BaseException:
            self._frozen.detach()
            raise
        gpu = gpu_of(model)
        span = None if gpu is None else partial(DeviceSpan, gpu)
        self.timing = StepTimer(self._run.speedup, full_cost=costs.full, span=span)
        self.applied_steps, self._step, self._taken = 0, None, None
        return self

    def _warn(self, text: str | None) -> None:
        if text is not None and text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)

    def detach(self) -> None:
        """Remove all hooks from model and optimizer. Does nothing if the controller is not attached."""
        attached = self._run.detach()
        self._frozen.detach()
        if attached:
            self.timing.finish()  # last, because waiting for a GPU raises an error if its work has failed

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which are detached."""
        return vars(self) | {"_run": copy(self._run), "_frozen": FrozenGroups()}

    def __enter__(self) -> Multirate:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the controller is attached to a model and an optimizer."""
        return self._run.pipeline is not None

    @property
    def begun(self) -> bool:
        """Whether a step has begun that the optimizer has not taken yet."""
        return self._run.pipeline is not None and self._run.pipeline.step is not None

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""
        return self._run.pipeline is not None and self._run.pipeline.stepping

    def controls(self, optimizer: Optimizer) -> bool:
        """Whether the controller is attached to ``optimizer``, which may be wrapped by Accelerate."""
        return self._run.pipeline is not None and unwrap_optimizer(optimizer) is self._run.pipeline.optimizer

    def begin_step(self, step: int) -> None:
        """Skip the backward pass below the live groups of ``step``, until `synchronize` or ``optimizer.step()``.

        Call it before the first forward pass of a step. With gradient accumulation it may be called before each
        micro-batch with the same index. Saving the model, or evaluating it without gradients, restores
        ``requires_grad`` and ends the partial backward of the step.

        Args:
            step: Index of the optimizer step from 0. A resumed run continues the count.

        Raises:
            RuntimeError: the controller is not attached, or the model has no wrapper in one of several processes.
            ValueError: ``step`` is negative, or not above the last step that was taken.
            TypeError: ``step`` is not an integer.
        """
        self._run.attached("begin_step()")
        if self.config.head_start:
            self._warn(NO_HEAD_START)
        if self.config.train_time is not None:
            self._warn(NO_TRAIN_TIME)
        begun = self._run.at(require_step(step, self._taken))
        pipeline = self._run.attached("begin_step()")  # that of the stage
        if pipeline.step is None or pipeline.step.index != begun.index:
            self._step = begun
            pipeline.open(begun)
            self.timing.start()
            return
        pipeline.open(begun)

    def set_step(self, step: int) -> None:
        """Set the live groups of ``step``. Unlike with `begin_step`, backward is partial within `micro_batch` only.

        Raises:
            RuntimeError: see `begin_step`.
            ValueError: see `begin_step`.
            TypeError: ``step`` is not an integer.
        """
        self._run.attached("begin_step()")
        self._step = self._run.at(require_step(step, self._taken))
        self._run.attached("begin_step()").begin(self._step)
        self.timing.start()

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch; ``requires_grad`` and values are restored on exit.

        The context ends early if the optimizer takes its step inside it.

        Args:
            last: Whether this is the last micro-batch of the step, so that gradients are averaged on exit.
        """
        return self._run.attached("micro_batch()").micro_batch(last=last)

    def synchronize(self) -> None:
        """Average the gradients of a fast step over all processes, after its last backward pass.

        A custom training loop with DistributedDataParallel has to call it at every step, after the last backward pass
        and before gradients are clipped. At full steps it does nothing, because DDP has averaged the gradients.
        """
        self._run.attached("synchronize()").synchronize()

    def _after_applied(self, step: Step) -> None:
        self.applied_steps += 1
        self._taken = self._run.begin + step.index
        if self._run.correct_speedup():
            self.timing.speedup_predicted = self._run.speedup
        self.timing.stop(full=step.full, predicted_cost=self.relative_cost)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State for a checkpoint besides model and optimizer, by parameter name. Call it while attached."""
        return self._run.state_dict()

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load a `state_dict`. Call it after `attach`.

        Raises:
            ValueError: ``state`` is damaged, or belongs to another model.
        """
        self._run.load_state_dict(state)
        self._taken = None

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training."""
        return self._run.changes_training if self._run.settled else not self.config.is_standard_training

    @property
    def skips_backward(self) -> bool:
        """Whether any step leaves some parameters without a gradient."""
        return self._run.skips_backward

    @property
    def stages(self) -> tuple[SettledStage, ...]:
        """The stages of the run on the assigned model; one if the configuration has no stages."""
        return self._run.settled

    @property
    def stage(self) -> int:
        """Number of the present stage, counted from 1."""
        return self._run.index + 1

    @property
    def stage_speedups(self) -> list[float]:
        """Predicted speed-up of each stage. Available once attached."""
        return list(self._run.speedups)

    @property
    def settled(self) -> MultirateConfig:
        """The configuration in use: with automatic periods chosen, and without frozen groups."""
        return self._run.config

    @property
    def groups(self) -> Sequence[RateGroup]:
        """The rate groups of `settled`."""
        return self._run.config.groups

    @property
    def schedule(self) -> Schedule:
        """The schedule: steps at which each group gets a gradient."""
        return self._run.config.schedule

    @property
    def partition(self) -> Partition:
        """Rate group name -> names of its parameters."""
        return self._run.partition

    @property
    def step(self) -> int | None:
        """Index of the last step that has begun; None before the first step."""
        return None if self._step is None else self._run.begin + self._step.index

    @property
    def phase(self) -> int:
        """Position of the present step in the cycle: see `hf_multirate.config.schedule.Schedule.phase`."""
        return 0 if self._step is None else self._run.config.cycles.phase(self._step.index)

    @property
    def cycle(self) -> int:
        """Number of steps after which the refreshes of all groups repeat."""
        return self._run.config.cycles.cycle

    @property
    def is_full_step(self) -> bool:
        """Whether the present step is a full step, at which all trainable parameters get a gradient.

        At fast steps, ``grad`` of idle parameters is None although their ``requires_grad`` is True.
        """
        return self._step is None or self._step.full

    @property
    def relative_cost(self) -> float:
        """Predicted cost of the present step, as a share of a step of standard training."""
        return 1.0 if self._step is None or self._run.costs is None else self._run.costs.of(self._step.live)

    def learning_rates(self) -> dict[str, tuple[float, float]]:
        """Rate group name -> its lowest and its highest learning rate. Available while attached."""
        return self._run.attached("learning_rates()").rates.by_rate_group()

    @property
    def activation_cache(self) -> ActivationCache | None:
        """The activation cache of the present or the last run; None without one."""
        return self._run.activation_cache

    @property
    def loss_decrease(self) -> LossDecreaseAverages:
        """First-order decrease of the loss by the last updates. Available while attached."""
        return self._run.attached("loss_decrease").updater.loss_decrease

    def describe(self) -> str:
        """A text table of the rate groups, the boundary below which backward is skipped, and the predicted cost."""
        return self._run.describe(as_stages=bool(self.config.stage_list))
