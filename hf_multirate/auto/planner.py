"""Makes one plan after the other, within a budget: periods and drift of each block, from what was measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.distributed as dist

from hf_multirate.auto.policy import ladder, work_of
from hf_multirate.auto.settings import Budget
from hf_multirate.auto.signals import Signals
from hf_multirate.auto.work import CountedWork
from hf_multirate.groups import RateGroup
from hf_multirate.schedule import Schedule, Stages


PLANS = 4
"""Plans over which the budget is met, where the end of training is not known."""

ROUNDING = 1e-9

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What every block does from step ``start`` on, blocks from the top.

    Attributes:
        start: The first step.
        until: The step at which the next plan is made; None for never.
        cycle_start: The step at which the cycle of the periods begins; those before it are full.
        periods: Steps between two gradients of each block.
        drift: Idle steps at which each block drifts.
        worth: What the periods were made from, at a learning rate of 1; None where nothing was known.
    """

    start: int
    until: int | None
    cycle_start: int
    periods: tuple[int, ...]
    drift: tuple[int, ...]
    worth: tuple[float, ...] | None = None

    @property
    def schedule(self) -> Schedule:
        """Which blocks get a gradient at which step."""
        return Schedule(self.periods, self.cycle_start)


class Planner:
    """Decides before each step whether the plan changes. All it decides from is the same in all processes.

    Args:
        budget: What is asked for.
        groups: One for each block, from the top of the model down.
        members: Names of the parameters of each.
        work: Counts the work of blocks.
        processes: Those that train together; None for one.
    """

    def __init__(
        self,
        budget: Budget,
        groups: Sequence[RateGroup],
        members: Sequence[Sequence[str]],
        work: CountedWork,
        processes: dist.ProcessGroup | None = None,
    ) -> None:
        self._budget = budget
        self._groups = tuple(groups)
        self._members = members
        self._work = work
        self._processes = processes
        self._first = 0
        self._spent = 0.0
        self.depths: list[float] | None = None
        """Work of a step with none of the blocks live, with the first, and so on, as a share of a full one."""
        self.total_steps: int | None = None
        """The step at which training ends, where that is known."""
        self.signals = Signals(len(groups))
        self.plans: list[Plan] = []

    @property
    def groups(self) -> tuple[RateGroup, ...]:
        """The rate groups as they are now."""
        if not self.plans:
            return self._groups
        plan = self.plans[-1]
        return tuple(
            replace(group, period=period, drift_steps=drift if period > 1 else None)
            for group, period, drift in zip(self._groups, plan.periods, plan.drift, strict=True)
        )

    @property
    def schedule(self) -> Stages:
        """Which blocks are live at which step: of the plan in force, and the one before it."""
        if not self.plans:
            return Stages(((0, Schedule((1,) * len(self._groups))),))
        return Stages(tuple((plan.start, plan.schedule) for plan in self.plans[-2:]))

    def begin(self, step: int) -> bool:
        """Whether the plan is another one from ``step`` on."""
        if not self.plans:
            self._first = step
            self._measure(step)
            return True
        until = self.plans[-1].until
        if until is None or step < until:
            return False
        self._spent += sum(self.cost(at) for at in range(self.plans[-1].start, step))
        self._plan(step)
        return True

    def cost(self, step: int) -> float:
        """Work of ``step`` as a share of a full one."""
        live = len(self.plans[-1].schedule.live(step)) if self.plans else len(self._groups)
        return 1.0 if self.depths is None else self.depths[live]

    def _measure(self, step: int) -> None:
        ones = (1,) * len(self._groups)
        until: int | None = step + self._budget.measure_steps
        if len(ones) == 1:
            logger.warning("the model has one block with trainable parameters, so every step is a full step.")
            until = None
        elif self._short:
            logger.warning(
                "training of %d steps is too short to measure first, which takes %d: periods follow from the work of "
                "blocks alone, and stay.", (self.total_steps or 0) - step, self._budget.least_steps,
            )  # fmt: skip
            until = step + 1
        self.plans.append(Plan(step, until, step, ones, (0,) * len(ones)))

    @property
    def _short(self) -> bool:
        return self.total_steps is not None and self.total_steps - self._first < self._budget.least_steps

    def _plan(self, step: int) -> None:
        first = self.depths is None
        if self.depths is None:
            self.depths = self._work.by_depth(self._members, self._processes)
        worth = self.signals.usable()
        if worth is None and not self._short:
            logger.warning("at step %d the worth of no block is above its noise: all blocks count alike.", step)
        costs = [high - low for low, high in zip(self.depths, self.depths[1:], strict=False)]
        longest, slowest = self._budget.longest, (1, *[self._budget.longest] * (len(costs) - 1))
        bound = work_of(costs, self.depths[0], slowest)
        if first and bound > self._budget.share:
            logger.warning(
                "a speed-up of %.2f was asked for, and this model allows %.2f at most, with all but the top block at "
                "every %dth step: periods are as long as they can be.", 1 / self._budget.share, 1 / bound, longest,
            )  # fmt: skip
        length = self._length(step)
        left = self._budget.share * (step + length - self._first) - self._spent
        full = 0 if self._short else 1
        extra = -(-length // self._budget.plan_steps) * full
        budget = (left - extra) / max(1, length - extra) + ROUNDING
        periods = ladder(worth or [1.0] * len(costs), costs, self.depths[0], budget, longest)
        drift = tuple(self.signals.drift_steps(block, period) for block, period in enumerate(periods))
        last = self.total_steps is not None and self.total_steps < step + self._budget.plan_steps + longest
        until = None if last or self._short else step + self._budget.plan_steps
        told = None if worth is None else tuple(worth)
        self.plans.append(Plan(step, until, step + full, periods, drift, told))
        logger.info("step %d: %s", step, self.told())

    def _length(self, step: int) -> int:
        """Steps over which what was spent above the budget is made up for: to the end, where that is known."""
        if self.total_steps is None:
            return PLANS * self._budget.plan_steps
        return max(1, self.total_steps - step)

    def close(self) -> None:
        """Leave nothing on the model."""
        self._work.stop()

    def told(self) -> str:
        """The plan in force in one line."""
        plan = self.plans[-1]
        blocks = zip(self._groups, plan.periods, plan.drift, strict=True)
        return ", ".join(f"{group.name} every {period} (drift {drift})" for group, period, drift in blocks)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "blocks": [group.name for group in self._groups],
            "first": self._first,
            "spent": self._spent,
            "depths": self.depths,
            "signals": self.signals.state_dict(),
            "plans": [asdict(plan) for plan in self.plans],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Raises:
            ValueError: it is of other blocks.
        """
        names = [group.name for group in self._groups]
        if state["blocks"] != names:
            raise ValueError(
                f"the checkpoint has a plan for the blocks {state['blocks']}, the model has {names}. Resume with the "
                "model and configuration that wrote it."
            )
        self._first, self._spent, self.depths = state["first"], state["spent"], state["depths"]
        self.signals.load_state_dict(state["signals"])
        self.plans = [Plan(**{**plan, **_tuples(plan)}) for plan in state["plans"]]
        if self.depths is not None:
            self._work.stop()


def _tuples(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in plan.items() if isinstance(value, (list, tuple))}
