"""The stages of a run: the stage that a step belongs to, and the pipeline of the present stage.

A run without stages has one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hf_multirate.backward.activation_cache import ActivationCache
from hf_multirate.backward.activation_cache_setup import activation_cache_for
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.schedule import Step
from hf_multirate.controller.guards import mark_attached, mark_detached
from hf_multirate.controller.step_pipeline import Members, StepPipeline
from hf_multirate.model.auto_periods import shortened
from hf_multirate.model.cost_model import StepCosts
from hf_multirate.model.describe import describe, describe_stages
from hf_multirate.model.partition import Partition, left_out
from hf_multirate.model.setup_warnings import (
    drops_layers,
    too_many_graphs,
    warn_of_emulated_precision,
    warn_of_lost_steps,
    warn_of_tied_head,
    warn_of_towers,
)
from hf_multirate.model.stages import SettledStage, factors_of_run, settle_stages, speedup_of_stages
from hf_multirate.model.unwrap import canonical_parameters, unwrap_model
from hf_multirate.optim.state_check import check_state


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attachment:
    """Arguments of the pipelines of all stages.

    Attributes:
        model: The model with its wrapper.
        optimizer: The optimizer, without the wrapper of Accelerate.
        applied: Called after each step that the optimizer has applied.
        cache_folder: Folder of an activation cache on disk, unless the configuration names one.
    """

    model: nn.Module
    optimizer: Optimizer
    applied: Callable[[Step], None]
    cache_folder: str | None


class RunStages:
    """The stages of a run, one of which is present.

    Args:
        config: The configuration in use before `settle`.

    Attributes:
        model: The model without its wrapper; None before `settle`.
        settled: The stages on the model; none before `settle`.
        ends: Number of steps before each stage begins, and of the run; only the first without stages.
        index: Index of the present stage.
        speedups: Predicted speed-up of each stage.
        scales_steps: Whether a stage scales learning rates.
        pipeline: The pipeline of the present stage; None while detached.
        costs: Costs of the steps of the present or the last stage; None before the first `attach`.
        activation_cache: The activation cache of the present or the last run.
    """

    def __init__(self, config: MultirateConfig) -> None:
        self.model: nn.Module | None = None
        self.settled: tuple[SettledStage, ...] = ()
        self.ends: tuple[int, ...] = (0,)
        self.index = 0
        self.speedups: list[float] = []
        self.scales_steps = False
        self.pipeline: StepPipeline | None = None
        self.costs: StepCosts | None = None
        self.activation_cache: ActivationCache | None = None
        self._config = config
        self._corrections = 0
        self._factors: dict[nn.Parameter, float] = {}
        self._loaded: Mapping[str, Mapping[str, Any]] | None = None
        """State of a checkpoint that the first step puts into the pipeline of its stage."""
        self._attachment: Attachment | None = None

    def __getstate__(self) -> dict[str, Any]:
        """State for copies and pickles, which are detached."""
        return vars(self) | {"pipeline": None, "activation_cache": None, "_attachment": None, "_factors": {}}

    def settle(self, config: MultirateConfig, model: nn.Module, warn: Callable[[str], None]) -> None:
        """Assign the parameters of ``model`` to the rate groups of each stage, and go to the first stage.

        Args:
            config: The configuration of the run.
            model: The model without its wrapper.
            warn: Function that receives warnings.

        Raises:
            ValueError: the rate groups or the learning rates of a stage do not fit the model.
        """
        first = not self.settled
        self.settled = settle_stages(config, model, warn)
        self.model, self.index = model, 0
        self._factors = factors_of_run(self.settled, model)
        for stage in self.settled if first else ():
            warn_of_towers(stage.config, model)
            warn_of_emulated_precision(stage.config, model.parameters())
            warn_of_tied_head(stage.config, stage.partition, model)
            warn_of_lost_steps(stage.config, stage.partition, canonical_parameters(model))

    def attach(self, attachment: Attachment, warn: Callable[[str | None], None]) -> StepCosts:
        """Make the pipeline of the first stage. Pipelines of later stages are made and closed again.

        Args:
            attachment: Arguments of the pipelines.
            warn: Function that receives a warning, or None.

        Returns:
            The costs of the steps of the first stage.

        Raises:
            ValueError: model or optimizer do not fit a stage.
            RuntimeError: processes have different configurations or parameters.
            NotImplementedError: the wrapper or an adapter of the model is not supported.
        """
        for stage in self.settled:
            warn(left_out(shortened(stage.given, unwrap_model(attachment.model)), stage.config))
        warn(drops_layers(unwrap_model(attachment.model)) if self.skips_backward else None)
        warn(too_many_graphs(attachment.model, sum(len(stage.config.schedule.kinds) for stage in self.settled)))
        first, *later = self.settled
        checked = []
        for stage in later:  # made once, so that their errors are raised before training
            pipeline = self._make(stage, attachment)
            pipeline.close()
            checked.append(pipeline)
        pipelines = [self._make(first, attachment), *checked]
        pairs = zip(pipelines, self.settled, strict=True)
        self.speedups = [pipeline.costs.speedup(stage.config.schedule.kinds) for pipeline, stage in pairs]
        self.scales_steps = any(pipeline.rates.scales for pipeline in pipelines)
        self.pipeline, self.costs, self._corrections = pipelines[0], pipelines[0].costs, 0
        self.activation_cache = pipelines[0].activation_cache
        self._attachment, self._loaded = attachment, None
        mark_attached(attachment.optimizer, unwrap_model(attachment.model))
        return self.costs

    def detach(self) -> bool:
        """Close the pipeline. Returns whether there was one."""
        attached = self.pipeline is not None
        if self.pipeline is not None and self.model is not None:
            self.pipeline.close()
            mark_detached(self.pipeline.optimizer, self.model)
        self.pipeline = self._attachment = self._loaded = None
        return attached

    def attached(self, caller: str) -> StepPipeline:
        """The pipeline of the present stage.

        Raises:
            RuntimeError: there is none. The message names ``caller``.
        """
        if self.pipeline is None:
            raise RuntimeError(f"{caller} needs a model and an optimizer. Call attach(model, optimizer) first.")
        return self.pipeline

    def _make(self, stage: SettledStage, attachment: Attachment) -> StepPipeline:
        model = unwrap_model(attachment.model)
        parts = stage.partition.parameters(model)
        groups = {group.name: parts[group.name] for group in stage.config.groups}
        parameters = canonical_parameters(model)
        never = {name: parameters[name] for name in stage.partition.never_names}
        members = Members(groups, never, self._factors)
        pipeline = StepPipeline(stage.config, attachment.model, attachment.optimizer, members, attachment.applied)
        try:
            live = (groups[group.name] for group in stage.config.groups if not group.is_never)
            trained = [parameter for group in live for parameter in group.values()]
            cache = activation_cache_for(stage.config, attachment.model, trained, attachment.cache_folder)
        except BaseException:
            pipeline.close()
            raise
        if cache is not None:
            pipeline.add_cache(cache)
        return pipeline

    def at(self, step: int) -> Step:
        """The step with index ``step`` of the run, within its stage. Begins another stage if it belongs to it."""
        last = len(self.settled) - 1
        index = next((i for i, end in enumerate(self.ends[1:]) if step < end), last)
        if index != self.index:
            self._begin_stage(index, step)
        begin = self.ends[index]
        if self._loaded is not None and self.pipeline is not None:
            if step > begin:  # otherwise the state belongs to the stage before
                self.pipeline.load_state_dict(self._loaded)
            self._loaded = None
        return self.config.schedule.at(step - begin)

    def _begin_stage(self, index: int, step: int) -> None:
        """Close the pipeline of the present stage, and make that of stage ``index``."""
        self.attached("begin_step()").close()
        self.index = index
        assert self._attachment is not None  # set together with the pipeline
        self.pipeline = self._make(self.settled[index], self._attachment)
        self.costs, self._corrections = self.pipeline.costs, 0
        self._continue_cache(self.pipeline.activation_cache)
        periods = ", ".join(f"{group.name}: {group.period}" for group in self.config.groups)
        logger.info("stage %d of %d begins before step %d. Periods: %s.", index + 1, len(self.settled), step, periods)

    def _continue_cache(self, cache: ActivationCache | None) -> None:
        """Use the activation cache of another stage. Hits and misses are those of the whole run."""
        if cache is None:
            return  # the last one keeps the counts of the run
        if self.activation_cache is not None:
            cache.counts = self.activation_cache.counts
        self.activation_cache = cache

    def correct_speedup(self) -> bool:
        """Predict the speed-up of the present stage again if its costs were corrected. Returns whether they were."""
        if self.costs is None or self.costs.corrections <= self._corrections:
            return False
        self._corrections = self.costs.corrections
        self.speedups[self.index] = self.costs.speedup(self.config.schedule.kinds)
        return True

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State of the pipeline for a checkpoint, or a loaded state that no step has used yet."""
        pipeline = self.attached("state_dict()")
        return pipeline.state_dict() if self._loaded is None else {k: dict(v) for k, v in self._loaded.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load a `state_dict`.

        Raises:
            ValueError: ``state`` is damaged, or belongs to another model.
        """
        pipeline = self.attached("load_state_dict()")
        if len(self.settled) == 1:
            pipeline.load_state_dict(state)
            return
        check_state(state)
        self._loaded = state  # the first step says which stage it belongs to

    @property
    def config(self) -> MultirateConfig:
        """The configuration of the present stage; that of the run before `settle`."""
        return self.settled[self.index].config if self.settled else self._config

    @property
    def partition(self) -> Partition:
        """The rate groups of the present stage.

        Raises:
            RuntimeError: `settle` was not called.
        """
        if not self.settled:
            raise RuntimeError("there is no model yet. Call assign(model) or attach(model, optimizer) first.")
        return self.settled[self.index].partition

    @property
    def begin(self) -> int:
        """Number of steps before the present stage."""
        return self.ends[self.index]

    @property
    def speedup(self) -> float:
        """Predicted speed-up of the run. Available once attached."""
        return speedup_of_stages(self.settled, self.speedups)

    @property
    def changes_training(self) -> bool:
        """Whether training differs from standard training. Available after `settle`."""
        never = bool(self.settled[0].partition.never)
        standard = all(stage.config.is_standard_training for stage in self.settled)
        return not standard or self.scales_steps or never

    @property
    def skips_backward(self) -> bool:
        """Whether any step leaves some parameters without a gradient."""
        return any(stage.config.skips_backward for stage in self.settled) or self.config.skips_backward

    def describe(self, *, as_stages: bool) -> str:
        """A text table of the rate groups of the present stage, or one with all stages.

        Raises:
            RuntimeError: `settle` was not called.
        """
        partition = self.partition
        assert self.model is not None  # set together with the partition
        return describe_stages(self.settled, self.model) if as_stages else describe(self.config, partition, self.model)
