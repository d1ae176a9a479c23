"""Makes one plan after the other, within a budget: periods and drift of each block, from what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch.distributed as dist

from hf_multirate.auto.plan import Plan
from hf_multirate.auto.policy import ladder, slowest, work_of
from hf_multirate.auto.signals import Signals
from hf_multirate.auto.work import UNSEEN, CountedWork
from hf_multirate.config import MultirateConfig
from hf_multirate.groups import RateGroup
from hf_multirate.schedule import Schedule, Stages


PLANS = 4
"""Plans over which the budget is met, where the end of training is not known."""

ROUNDING = 1e-9

logger = logging.getLogger(__name__)


class Planner:
    """Decides before each step whether the plan changes. All it decides from is the same in all processes.

    Args:
        config: With a budget, and a rate group for each block from the top of the model down.
        members: Names of the parameters of each.
        work: Counts the work of blocks.
        processes: Those that train together; None for one.
    """

    def __init__(
        self,
        config: MultirateConfig,
        members: Sequence[Sequence[str]],
        work: CountedWork,
        processes: dist.ProcessGroup | None = None,
    ) -> None:
        assert config.budget is not None  # else nothing is planned
        self._budget = config.budget
        self._groups = tuple(config.groups)
        self._full_until = config.initial_full_steps
        self._members = members
        self._work = work
        self._processes = processes
        self._first = self._measured = 0
        self._spent = 0.0
        self.depths: list[float] | None = None
        """Work of a step with none of the blocks live, with the first, and so on, as a share of a full one."""
        self.total_steps: int | None = None
        """The step at which training ends, where that is known."""
        self.signals = Signals(len(self._groups))
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

    def begin(self, step: int, trust: Callable[[int], float]) -> bool:
        """Whether the plan is another one from ``step`` on; ``trust`` has the length of a block's drift."""
        if not self.plans:
            self._first = step
            self._measure(step)
            self._work.steps += 1
            return True
        self._work.steps += self.depths is None
        until = self.plans[-1].until
        # Close to the end another plan does not pay; the first one always does.
        near = len(self.plans) > 1 and self._ends_before(step + self._budget.longest)
        extended = until is None and self._was_short and not self._ends_before(step + self._budget.least_steps)
        if (until is None or step < until or near) and not extended:
            return False
        self._spent += sum(self.cost(at) for at in range(self.plans[-1].start, step))
        if extended:  # a run that was too short to measure goes on for longer
            self._measure(step)
        else:
            self._plan(step, trust)
        return True

    def cost(self, step: int) -> float:
        """Work of ``step`` as a share of a full one, drift included."""
        if self.depths is None or not self.plans:
            return 1.0
        plan = self.plans[-1]
        since = [plan.schedule.steps_since_refresh(block, step) for block in range(len(self._groups))]
        drifts = zip(since, plan.drift, self._work.updates, strict=True)
        return self.depths[since.count(0)] + sum(update for idle, steps, update in drifts if 0 < idle <= steps)

    def _measure(self, step: int) -> None:
        ones = (1,) * len(self._groups)
        self._measured = step
        until: int | None = max(step + self._budget.measure_steps, self._full_until)
        if len(ones) == 1:
            logger.warning("the model has one block with trainable parameters, so every step is a full step.")
            until = None
        elif self._short:
            logger.warning(
                "training of %d steps is too short to measure first, which takes %d: periods follow from the work of "
                "blocks alone, and stay.", (self.total_steps or 0) - step, self._budget.least_steps,
            )  # fmt: skip
            until = max(step + 1, self._full_until)
        self.plans.append(Plan(step, until, step, ones, (0,) * len(ones)))

    @property
    def _short(self) -> bool:
        return self._ends_before(self._measured + self._budget.least_steps)

    @property
    def _was_short(self) -> bool:
        """Whether the plan in force was made for training that was to end without another one."""
        return len(self.plans) > 1 and len(self._groups) > 1

    def _plan(self, step: int, trust: Callable[[int], float]) -> None:
        if self.depths is None:
            if not self._work.seen:
                logger.warning(
                    "shapes of batches are not seen here (torch.compile hides them), so the work of blocks is that of "
                    "%d positions a step: the speed-up will not be quite the one asked for.", UNSEEN,
                )  # fmt: skip
            self.depths = self._work.by_depth(self._members, self._processes)
            self._warn_of_bound()
        worth = self.signals.usable()
        if worth is None and not self._short:
            logger.warning("at step %d the worth of no block is above its noise: all blocks count alike.", step)
        known = worth or [1.0] * len(self._groups)
        periods = ladder(known, self._costs, self.depths[0], self._left(step), self._budget.longest)
        drift = tuple(self._drift(block, period, trust(block)) for block, period in enumerate(periods))
        told = None if worth is None else tuple(worth)
        # Two full steps in a row tell what one step is worth: the plan begins with them.
        until, cycle = (None, step) if self._short else (step + self._budget.plan_steps, step + 1)
        self.plans.append(Plan(step, until, cycle, periods, drift, told))
        logger.info("step %d: %s", step, self.told())

    def _drift(self, block: int, period: int, trust: float) -> int:
        """Idle steps at which drift lowers the loss more for its work than a gradient does for its own."""
        if trust == 0 or self._costs[block] == 0:
            return 0
        return self.signals.drift_steps(block, period, self._work.updates[block] / self._costs[block] / trust)

    @property
    def _costs(self) -> list[float]:
        assert self.depths is not None  # counted before the first plan
        return [high - low for low, high in pairwise(self.depths)]

    def _warn_of_bound(self) -> None:
        assert self.depths is not None  # counted before the first plan
        longest = self._budget.longest
        bound = work_of(self._costs, self.depths[0], slowest(len(self._groups), longest))
        if bound > self._budget.share:
            logger.warning(
                "a speed-up of %.2f was asked for, and this model allows %.2f at most, with all but the top block at "
                "every %dth step: periods are as long as they can be.", 1 / self._budget.share, 1 / bound, longest,
            )  # fmt: skip

    def _left(self, step: int) -> float:
        """Mean work of a step from ``step`` on, with which the budget is met, without the full steps between plans.

        What was spent above it is made up for until the end of training, or within a few plans where that is unknown.
        """
        length = PLANS * self._budget.plan_steps if self.total_steps is None else max(1, self.total_steps - step)
        full = 0 if self._short else -(-length // self._budget.plan_steps)
        left = self._budget.share * (step + length - self._first) - self._spent
        return (left - full) / max(1, length - full) + ROUNDING

    def _ends_before(self, step: int) -> bool:
        return self.total_steps is not None and self.total_steps < step

    def close(self) -> None:
        """Leave nothing on the model."""
        self._work.stop()

    def told(self) -> str:
        """The plan in force in one line."""
        plan = self.plans[-1]
        blocks = zip(self._groups, plan.periods, plan.drift, strict=True)
        return ", ".join(f"{group.name} every {period} (drift {drift})" for group, period, drift in blocks)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; all processes call it."""
        if self.depths is None:
            self._work.settle(self._processes)
        return {
            "blocks": [group.name for group in self._groups],
            "first": self._first,
            "measured": self._measured,
            "steps": self._work.steps,
            "spent": self._spent,
            "positions": dict(self._work.positions),
            "depths": self.depths,
            "updates": self._work.updates,
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
        self._first, self._measured, self._spent = state["first"], state["measured"], state["spent"]
        self.depths, self._work.updates = state["depths"], state["updates"]
        self.signals.load_state_dict(state["signals"])
        self.plans = [Plan(**{**plan, **_tuples(plan)}) for plan in state["plans"]]
        self._work.positions, self._work.steps = dict(state["positions"]), state["steps"]
        if self.depths is not None:
            self._work.stop()
            self._warn_of_bound()


def _tuples(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in plan.items() if isinstance(value, (list, tuple))}
