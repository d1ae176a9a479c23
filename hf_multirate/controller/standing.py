"""What a controller can say of itself at any time: its groups, and where in their cycle the present step is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hf_multirate.auto.periods import Plan
from hf_multirate.auto.planner import Planner, describe_plan
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule, Stages
from hf_multirate.model.cost_model import StepCosts
from hf_multirate.model.describe import describe
from hf_multirate.model.partition import Partition


class Standing:
    """Reads what `hf_multirate.controller.multirate.Multirate` keeps, and changes nothing.

    Args:
        config: The rate groups.
    """

    def __init__(self, config: MultirateConfig) -> None:
        self.config = config
        self.step: int | None = None
        """Index of the step that was begun last."""
        self._model: nn.Module | None = None
        self._partition: Partition | None = None
        self._resolved = config
        """``config`` with the blocks of the model as its groups, if it leaves them open, and without frozen groups."""
        self._planner: Planner | None = None
        self._costs: StepCosts | None = None

    @property
    def active(self) -> bool:
        """False for period 1, where training is left exactly as it is."""
        return not self._resolved.is_standard_training

    @property
    def prunes(self) -> bool:
        """Whether any step leaves some parameters without a gradient."""
        return self._resolved.prunes

    @property
    def groups(self) -> Sequence[RateGroup]:
        """The rate groups as they are now: with a budget, those of the present plan."""
        return self._resolved.groups if self._planner is None else self._planner.groups

    @property
    def schedule(self) -> Schedule | Stages:
        """Which of the groups get a gradient at which step, as it is now."""
        return self._resolved.schedule if self._planner is None else self._planner.schedule

    @property
    def plans(self) -> Sequence[Plan]:
        """With a budget, what was planned since training began: see `hf_multirate.auto.periods`."""
        return [] if self._planner is None else self._planner.plans

    @property
    def partition(self) -> Partition:
        """Rate group name -> names of its parameters."""
        if self._partition is None:
            raise RuntimeError("there is no model yet: call assign(model) or attach(model, optimizer) first.")
        return self._partition

    @property
    def settled(self) -> MultirateConfig:
        """The configuration with the groups that there are: without those that are frozen as a whole."""
        return self._resolved

    @property
    def phase(self) -> int:
        """Position in the cycle of the step begun last: see `hf_multirate.config.schedule.Schedule.phase`."""
        return 0 if self.step is None else self._cycles.phase(self.step)

    @property
    def cycle(self) -> int:
        """Steps after which the refreshes of groups repeat."""
        return self._cycles.cycle

    @property
    def _cycles(self) -> Schedule | Stages:
        return self._resolved.cycles if self._planner is None else self._planner.schedule

    @property
    def full(self) -> bool:
        """Whether every group gets a gradient at the step begun last."""
        return self.step is None or self.schedule.full(self.step)

    @property
    def is_full_step(self) -> bool:
        """Whether all trainable parameters get a gradient at the present step, the one begun last.

        At fast steps ``grad`` of idle parameters is None, although their ``requires_grad`` is True.
        """
        return self.full

    @property
    def relative_cost(self) -> float:
        """Predicted cost of the step begun last, as a share of a full one."""
        if self._planner is not None and self.step is not None:
            return self._planner.cost(self.step)
        if self.step is None or self._costs is None:
            return 1.0
        return self._costs.of(self.schedule.live(self.step))

    def describe(self) -> str:
        """A table of the rate groups, the boundary below which backward is skipped, and the predicted cost."""
        partition = self.partition
        assert self._model is not None  # assigned together with the partition
        if self.config.budget is None:
            return describe(self._resolved, partition, self._model)
        return describe_plan(partition, self._model, self.config.budget, self._planner)
