"""`Multirate`, the controller: attaches to a model and an optimizer for a training run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.backward.activation_cache_setup import activation_cache_for
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.config.stages import ends_of_run
from hf_multirate.config.validation import require_step, wrong_type
from hf_multirate.controller.frozen_groups import FrozenGroups
from hf_multirate.controller.guards import (
    check_unattached,
    mark_attached,
    mark_detached,
    require_model,
    unwrap_optimizer,
)
from hf_multirate.controller.step_pipeline import Members, StepPipeline
from hf_multirate.controller.step_timer import StepTimer
from hf_multirate.model.cost_model import StepCosts
from hf_multirate.model.describe import describe, describe_stages
from hf_multirate.model.partition import Partition, left_out
from hf_multirate.model.setup_warnings import drops_layers, warn_of_lost_steps, warn_of_tied_head, warn_of_towers
from hf_multirate.model.stages import SettledStage, factors_of_run, settle_stages, speedup_of_stages
from hf_multirate.model.unwrap import canonical_parameters, is_ddp, unwrap_model
from hf_multirate.optim.loss_decrease import LossDecreaseAverages
from hf_multirate.optim.state_check import check_state


logger = logging.getLogger(__name__)


NO_HEAD_START = (
    "head_start of the configuration applies to MultirateTrainer only. In a custom training loop, call "
    "hf_multirate.head_start(model, batches) before attach(), and leave head_start out of the configuration."
)

WRAPPED_TOO_EARLY = (
    "the rate groups {groups} have period 'never', but their parameters were trainable when the model was wrapped in "
    "DistributedDataParallel, which waits for their gradients. Call freeze_never(model) of the controller first."
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
        self._settled = config
        self._stages: tuple[SettledStage, ...] = ()
        self._stage = 0
        self._ends: tuple[int, ...] = (0,)
        """Number of steps before each stage begins, and of the run; only the first without stages."""
        self._speedups: list[float] = []
        self._loaded: Mapping[str, Mapping[str, Any]] | None = None
        """State of a checkpoint that the first step puts into the parts of its stage."""
        self._step: Step | None = None
        self._model: nn.Module | None = None
        self._partition: Partition | None = None
        self._costs: StepCosts | None = None
        self._corrections = 0
        self._activation_cache: ActivationCache | None = None
        self._pipeline: StepPipeline | None = None
        self._warned: set[str] = set()
        self._scales_steps = False
        self._wrapped: nn.Module | None = None
        """The attached model with its wrapper."""
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
        first = self._partition is None
        self._stages = settle_stages(self.config, model, self._warn)
        self._model = model
        self._set_stage(0)
        factors_of_run(self._stages, model)  # raises if they do not fit
        for stage in self._stages if first else ():
            warn_of_towers(stage.config, model)
            warn_of_tied_head(stage.config, stage.partition, model)
            warn_of_lost_steps(stage.config, stage.partition, canonical_parameters(model))
        return self

    def _set_stage(self, index: int) -> None:
        self._stage = index
        self._settled, self._partition = self._stages[index].config, self._stages[index].partition

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
                gradient, or ``total_steps`` is missing.
            RuntimeError: a controller is attached to the model or the optimizer already, or the processes of the run
                have different configurations or models.
            NotImplementedError: the wrapper or an adapter of the model is not supported.
        """
        require_model("attach()", model)
        optimizer = unwrap_optimizer(optimizer)
        if self.attached:
            raise RuntimeError("this controller is attached already. Call detach() first.")
        check_unattached(optimizer, unwrap_model(model))
        self._ends = ends_of_run(self.config.stage_list, total_steps, self._warn)
        frozen_before = self._frozen.model is unwrap_model(model)
        switched = self._freeze_never(unwrap_model(model))
        if not frozen_before:
            self._frozen.until_detach = self._frozen.model is not None
        try:
            if switched and not frozen_before and is_ddp(model):
                raise ValueError(WRAPPED_TOO_EARLY.format(groups=list(self.partition.never)))
            return self._attach(model, optimizer)
        except BaseException:
            self._thaw_after_attach()
            raise

    def _thaw_after_attach(self) -> None:
        if self._frozen.until_detach:
            self._frozen.restore()

    def _attach(self, model: nn.Module, optimizer: Optimizer) -> Multirate:
        for stage in self._stages:
            self._warn(left_out(stage.given, stage.config))
        self._warn(drops_layers(unwrap_model(model)) if self.skips_backward else None)
        first, *later = self._stages
        checked = []
        for stage in later:  # made once, so that their errors are raised before training
            pipeline = self._make_pipeline(stage, model, optimizer)
            pipeline.close()
            checked.append(pipeline)
        pipelines = [self._make_pipeline(first, model, optimizer), *checked]
        pairs = zip(pipelines, self._stages, strict=True)
        self._speedups = [pipeline.costs.speedup(stage.config.schedule.kinds) for pipeline, stage in pairs]
        self._scales_steps = any(pipeline.rates.scales for pipeline in pipelines)
        self._pipeline, self._wrapped, self._costs, self._corrections = pipelines[0], model, pipelines[0].costs, 0
        self._activation_cache = pipelines[0].activation_cache
        self.timing = StepTimer(speedup_of_stages(self._stages, self._speedups), full_cost=self._costs.full)
        self.applied_steps, self._step, self._loaded = 0, None, None
        mark_attached(optimizer, unwrap_model(model))
        return self

    def _make_pipeline(self, stage: SettledStage, model: nn.Module, optimizer: Optimizer) -> StepPipeline:
        parts = stage.partition.parameters(unwrap_model(model))
        groups = {group.name: parts[group.name] for group in stage.config.groups}
        factors = factors_of_run(self._stages, unwrap_model(model))
        parameters = canonical_parameters(unwrap_model(model))
        never = {name: parameters[name] for name in stage.partition.never_names}
        members = Members(groups, never, factors)
        pipeline = StepPipeline(stage.config, model, optimizer, members, self._after_applied)
        try:
            live = (groups[group.name] for group in stage.config.groups if not group.is_never)
            trained = [parameter for group in live for parameter in group.values()]
            cache = activation_cache_for(stage.config, model, trained, self.cache_folder)
        except BaseException:
            pipeline.close()
            raise
        if cache is not None:
            pipeline.add_cache(cache)
        return pipeline

    def _at(self, step: int) -> Step:
        """The step with index ``step``. Begins another stage if the step belongs to it."""
        last = len(self._stages) - 1
        index = next((i for i, end in enumerate(self._ends[1:]) if step < end), last)
        if index != self._stage:
            self._begin_stage(index, step)
        begin = self._ends[index]
        if self._loaded is not None and self._pipeline is not None:
            if step > begin:  # otherwise the state belongs to the stage before
                self._pipeline.load_state_dict(self._loaded)
            self._loaded = None
        return self._settled.schedule.at(step - begin)

    def _begin_stage(self, index: int, step: int) -> None:
        """Close the parts of the present stage, and make those of stage ``index``."""
        pipeline = self._attached("begin_step()")
        pipeline.close()
        self._set_stage(index)
        assert self._wrapped is not None  # attached before
        self._pipeline = self._make_pipeline(self._stages[index], self._wrapped, pipeline.optimizer)
        self._costs, self._corrections = self._pipeline.costs, 0
        self._continue_cache(self._pipeline.activation_cache)
        periods = ", ".join(f"{group.name}: {group.period}" for group in self._settled.groups)
        logger.info("stage %d of %d begins before step %d. Periods: %s.", index + 1, len(self._stages), step, periods)

    def _continue_cache(self, cache: ActivationCache | None) -> None:
        """Use the activation cache of another stage. Hits and misses are those of the whole run."""
        if cache is None:
            return  # the last one keeps the counts of the run
        if self._activation_cache is not None:
            cache.counts = self._activation_cache.counts
        self._activation_cache = cache

    def _warn(self, text: str | None) -> None:
        if text is not None and text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)

    def detach(self) -> None:
        """Remove all hooks from model and optimizer. Does nothing if the controller is not attached."""
        if self._pipeline is not None and self._model is not None:
            self._pipeline.close()
            mark_detached(self._pipeline.optimizer, self._model)
            self.timing.finish()
        self._pipeline = self._wrapped = self._loaded = None
        self._thaw_after_attach()

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which are detached."""
        detached = {"_pipeline": None, "_wrapped": None, "_activation_cache": None, "_frozen": FrozenGroups()}
        return vars(self) | detached

    def __enter__(self) -> Multirate:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether the controller is attached to a model and an optimizer."""
        return self._pipeline is not None

    @property
    def begun(self) -> bool:
        """Whether a step has begun that the optimizer has not taken yet."""
        return self._pipeline is not None and self._pipeline.step is not None

    @property
    def stepping(self) -> bool:
        """Whether the optimizer is taking a step."""
        return self._pipeline is not None and self._pipeline.stepping

    def controls(self, optimizer: Optimizer) -> bool:
        """Whether the controller is attached to ``optimizer``, which may be wrapped by Accelerate."""
        return self._pipeline is not None and unwrap_optimizer(optimizer) is self._pipeline.optimizer

    def begin_step(self, step: int) -> None:
        """Skip the backward pass below the live groups of ``step``, until `synchronize` or ``optimizer.step()``.

        Call it before the first forward pass of a step. With gradient accumulation it may be called before each
        micro-batch with the same index. Saving the model, or evaluating it without gradients, restores
        ``requires_grad`` and ends the partial backward of the step.

        Args:
            step: Index of the optimizer step from 0. A resumed run continues the count.

        Raises:
            RuntimeError: the controller is not attached.
            ValueError: ``step`` is negative.
            TypeError: ``step`` is not an integer.
        """
        self._attached("begin_step()")
        if self.config.head_start:
            self._warn(NO_HEAD_START)
        begun = self._at(require_step(step))
        pipeline = self._attached("begin_step()")  # that of the stage
        if pipeline.step is None or pipeline.step.index != begun.index:
            self._step = begun
            pipeline.open(begun)
            self.timing.start()
            return
        pipeline.open(begun)

    def set_step(self, step: int) -> None:
        """Set the live groups of ``step``. Unlike with `begin_step`, backward is partial within `micro_batch` only."""
        self._attached("begin_step()")
        self._step = self._at(step)
        self._attached("begin_step()").begin(self._step)
        self.timing.start()

    def micro_batch(self, last: bool = False) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch; ``requires_grad`` and values are restored on exit.

        The context ends early if the optimizer takes its step inside it.

        Args:
            last: Whether this is the last micro-batch of the step, so that gradients are averaged on exit.
        """
        return self._attached("micro_batch()").micro_batch(last=last)

    def synchronize(self) -> None:
        """Average the gradients of a fast step over all processes, after its last backward pass.

        A custom training loop with DistributedDataParallel has to call it at every step, after the last backward pass
        and before gradients are clipped. At full steps it does nothing, because DDP has averaged the gradients.
        """
        self._attached("synchronize()").synchronize()

    def _after_applied(self, step: Step) -> None:
        self.applied_steps += 1
        if self._costs is not None and self._costs.corrections > self._corrections:
            self._corrections = self._costs.corrections
            self._speedups[self._stage] = self._costs.speedup(self._settled.schedule.kinds)
            self.timing.speedup_predicted = speedup_of_stages(self._stages, self._speedups)
        self.timing.stop(full=step.full, predicted_cost=self.relative_cost)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State for a checkpoint besides model and optimizer, by parameter name. Call it while attached."""
        pipeline = self._attached("state_dict()")
        return pipeline.state_dict() if self._loaded is None else {k: dict(v) for k, v in self._loaded.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load a `state_dict`. Call it after `attach`.

        Raises:
            ValueError: ``state`` is damaged, or belongs to another model.
        """
        pipeline = self._attached("load_state_dict()")
        if len(self._stages) == 1:
            pipeline.load_state_dict(state)
            return
        check_state(state)
        self._loaded = state  # the first step says which stage it belongs to

    def _attached(self, caller: str) -> StepPipeline:
        if self._pipeline is None:
            raise RuntimeError(f"{caller} needs a model and an optimizer. Call attach(model, optimizer) first.")
        return self._pipeline

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training."""
        if not self._stages:
            return not self.config.is_standard_training
        never = bool(self._stages[0].partition.never)
        standard = all(stage.config.is_standard_training for stage in self._stages)
        return not standard or self._scales_steps or never

    @property
    def skips_backward(self) -> bool:
        """Whether any step leaves some parameters without a gradient."""
        return any(stage.config.skips_backward for stage in self._stages) or self._settled.skips_backward

    @property
    def stages(self) -> tuple[SettledStage, ...]:
        """The stages of the run on the assigned model; one if the configuration has no stages."""
        return self._stages

    @property
    def stage(self) -> int:
        """Number of the present stage, counted from 1."""
        return self._stage + 1

    @property
    def stage_speedups(self) -> list[float]:
        """Predicted speed-up of each stage. Available once attached."""
        return list(self._speedups)

    @property
    def settled(self) -> MultirateConfig:
        """The configuration in use: with automatic periods chosen, and without frozen groups."""
        return self._settled

    @property
    def groups(self) -> Sequence[RateGroup]:
        """The rate groups of `settled`."""
        return self._settled.groups

    @property
    def schedule(self) -> Schedule:
        """The schedule: steps at which each group gets a gradient."""
        return self._settled.schedule

    @property
    def partition(self) -> Partition:
        """Rate group name -> names of its parameters."""
        if self._partition is None:
            raise RuntimeError("there is no model yet. Call assign(model) or attach(model, optimizer) first.")
        return self._partition

    @property
    def step(self) -> int | None:
        """Index of the last step that has begun; None before the first step."""
        return None if self._step is None else self._ends[self._stage] + self._step.index

    @property
    def phase(self) -> int:
        """Position of the present step in the cycle: see `hf_multirate.config.schedule.Schedule.phase`."""
        return 0 if self._step is None else self._settled.cycles.phase(self._step.index)

    @property
    def cycle(self) -> int:
        """Number of steps after which the refreshes of all groups repeat."""
        return self._settled.cycles.cycle

    @property
    def is_full_step(self) -> bool:
        """Whether the present step is a full step, at which all trainable parameters get a gradient.

        At fast steps, ``grad`` of idle parameters is None although their ``requires_grad`` is True.
        """
        return self._step is None or self._step.full

    @property
    def relative_cost(self) -> float:
        """Predicted cost of the present step, as a share of a step of standard training."""
        return 1.0 if self._step is None or self._costs is None else self._costs.of(self._step.live)

    def learning_rates(self) -> dict[str, tuple[float, float]]:
        """Rate group name -> its lowest and its highest learning rate. Available while attached."""
        return self._attached("learning_rates()").rates.by_rate_group()

    @property
    def activation_cache(self) -> ActivationCache | None:
        """The activation cache of the present or the last run; None without one."""
        return self._activation_cache

    @property
    def loss_decrease(self) -> LossDecreaseAverages:
        """First-order decrease of the loss by the last updates. Available while attached."""
        return self._attached("loss_decrease").updater.loss_decrease

    def describe(self) -> str:
        """A text table of the rate groups, the boundary below which backward is skipped, and the predicted cost."""
        partition = self.partition
        assert self._model is not None  # assigned together with the partition
        if not self.config.stage_list:
            return describe(self._settled, partition, self._model)
        return describe_stages(self._stages, self._model)
