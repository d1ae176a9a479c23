"""Makes one plan after the other, within a budget: periods and drift of each block, from what was measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from hf_multirate.auto.estimates import Signals
from hf_multirate.auto.periods import Plan, expected, ladder, work_of
from hf_multirate.auto.work_budget import Account
from hf_multirate.config.budget import Budget
from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule, Stages
from hf_multirate.config.text import one_line, shortened
from hf_multirate.model.describe import align_columns, shorten_names
from hf_multirate.model.partition import Partition
from hf_multirate.model.unwrap import canonical_parameters
from hf_multirate.optim.state_check import check_plan


logger = logging.getLogger(__name__)


class Planner:
    """Decides before each step whether the plan changes. All it decides from is the same in all processes.

    Args:
        config: With a budget, and a rate group for each block from the top of the model down.
        account: Of the work of its blocks.
    """

    def __init__(self, config: MultirateConfig, account: Account) -> None:
        assert config.budget is not None  # else nothing is planned
        self._budget = config.budget
        self._groups = tuple(config.groups)
        self._full_until = config.initial_full_steps
        self._turns, self._turns_seed = config.turns, config.turns_seed
        self._first = 0
        self._told = False
        self.account = account
        self.total_steps: int | None = None
        """The step at which training ends, where that is known."""
        self.unread: Collection[str] = ()
        """Names of the blocks that had no gradient so far: no module reads them, as an unused pooler."""
        self._read: set[str] = set()
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
        changed = self._begin(step, trust)
        if self.plans[-1].until is not None:
            self.account.look(full=self.schedule.full(step))
        return changed

    def _begin(self, step: int, trust: Callable[[int], float]) -> bool:
        if not self.plans:
            self.account.open(step)
            self._count(step)
            return True
        if step < self.plans[-1].start:
            raise ValueError(
                f"step {step} was begun after step {self.plans[-1].start}: with a budget, number the steps of the "
                "whole training from 0, and not those of each epoch."
            )
        until = self.plans[-1].until
        # Close to the end another plan does not pay; the first one always does.
        near = len(self.plans) > 1 and self._ends_before(step + self._budget.longest)
        extended = until is None and self._was_short and not self._ends_before(step + self._budget.least_steps)
        if (until is None or step < until or near) and not extended:
            return False
        if extended:  # a run that was too short to measure goes on for longer
            self._first = step
        self._plan(step, trust)
        return True

    def cost(self, step: int) -> float:
        """Work of ``step`` as a share of a full one."""
        return self.account.cost(self.plans[-1], step) if self.plans else 1.0

    def _count(self, step: int) -> None:
        """Full steps that tell the work of the blocks: the first, and those that were asked for."""
        ones = (1,) * len(self._groups)
        self._first = step
        until: int | None = max(step + 1, self._full_until)
        if len(ones) == 1:
            logger.warning("the model has one block with trainable parameters, so every step is a full step.")
            until = None
        elif self._short:
            logger.warning(
                "training of %d steps is too short to measure what gradients are worth, which takes %d: periods "
                "follow from the work of blocks, and stay.",
                (self.total_steps or 0) - step, self._budget.least_steps,
            )  # fmt: skip
        self.plans.append(Plan(step, until, step, ones, (0,) * len(ones)))

    @property
    def _short(self) -> bool:
        return self._ends_before(self._first + self._budget.least_steps)

    @property
    def _was_short(self) -> bool:
        """Whether the plan in force was made for training that was to end without another one."""
        return len(self.plans) > 1 and len(self._groups) > 1

    def _plan(self, step: int, trust: Callable[[int], float]) -> None:
        names, unread = [group.name for group in self._groups], self._unread()
        self.account.count(names, last=self._short or len(self.plans) > 1, unread=unread)
        self.account.spend(self.plans[-1], step)
        usual = expected(len(self._groups))
        worth = self.signals.given(usual)
        if worth is None and len(self.plans) > 1 and not self._told:
            self._told = True
            logger.info(
                "at step %d what gradients are worth is not above its noise: periods follow from the work of blocks "
                "and what is usual.", step,
            )  # fmt: skip
        left = self.account.left(step, self.total_steps, last=self._short)
        lead = self._lead(unread)
        self.account.warn_if_out_of_reach(step, self.total_steps, last=self._short, lead=lead)
        expects = [0.0 if block in unread else value for block, value in enumerate(worth or usual)]
        periods, drift = self._within(left, expects, trust, lead)
        told = None if worth is None else tuple(worth)
        # Two full steps in a row tell what one step is worth: the plan begins with them.
        until, cycle = (None, step) if self._short else (step + self._budget.plan_steps, step + 1)
        # A seed for each plan: else all of them would begin with the same positions.
        seed = self._turns_seed + len(self.plans)
        self.plans.append(Plan(step, until, cycle, periods, drift, told, self._turns, seed))
        logger.info("step %d: %s", step, self.told())

    def _unread(self) -> set[int]:
        """Places of the blocks that had no gradient so far."""
        self._read |= {group.name for group in self._groups} - set(self.unread)
        return {block for block, group in enumerate(self._groups) if group.name not in self._read}

    def _lead(self, unread: Collection[int]) -> int:
        """Unread blocks above the first one that has gradients, which takes the first place: it has period 1."""
        return next((block for block in range(len(self._groups)) if block not in unread), 0)

    def _within(
        self, left: float, worth: Sequence[float], trust: Callable[[int], float], lead: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Periods and drift of blocks with work of at most ``left``: what drifts is paid for by gradients."""
        costs, fixed, longest = self.account.costs, self.account.fixed, self._budget.longest

        def spread(left: float) -> tuple[int, ...]:
            return (*[1] * lead, *ladder(worth[lead:], costs[lead:], fixed, left, longest))

        periods = spread(left)
        if not self._budget.drift:
            return periods, (0,) * len(periods)
        wanted = [self._drift(block, period, trust(block)) for block, period in enumerate(periods)]
        if not any(wanted):
            return periods, tuple(wanted)
        drifting = self.account.drifting(periods, wanted)
        periods = spread(left - drifting)
        drift = [min(steps, period - 1) for steps, period in zip(wanted, periods, strict=True)]
        if work_of(costs, fixed, periods) + self.account.drifting(periods, drift) > left:
            drift = [0] * len(drift)  # nothing is left for it
        return periods, tuple(drift)

    def _drift(self, block: int, period: int, trust: float) -> int:
        """Idle steps at which drift lowers the loss more for its work than a gradient does for its own."""
        cost = trust * self.account.costs[block]
        return self.signals.drift_steps(block, period, self.account.updates[block] / cost) if cost else 0

    def _ends_before(self, step: int) -> bool:
        return self.total_steps is not None and self.total_steps < step

    def told(self) -> str:
        """The plan in force in one line."""
        plan = self.plans[-1]
        blocks = zip(self._groups, plan.periods, plan.drift, strict=True)
        return ", ".join(f"{one_line(group.name)} every {period} (drift {drift})" for group, period, drift in blocks)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; all processes call it."""
        self._unread()
        return {
            "read": sorted(self._read),
            "blocks": [group.name for group in self._groups],
            "first": self._first,
            "account": self.account.state_dict(),
            "signals": self.signals.state_dict(),
            "plans": [asdict(plan) for plan in self.plans],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Raises:
            ValueError: it is of other blocks, or no such state.
        """
        check_plan(state, [group.name for group in self._groups])
        self._first, self._read = state["first"], set(state["read"])
        self.account.load_state_dict(state["account"])
        self.signals.load_state_dict(state["signals"])
        self.plans = [Plan(**{**plan, **_tuples(plan)}) for plan in state["plans"]]


def _tuples(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in plan.items() if isinstance(value, (list, tuple))}


def describe_plan(partition: Partition, model: nn.Module, budget: Budget, planner: Planner | None) -> str:
    """Blocks from the top with worth, work, period and drift, as far as they are known."""
    sizes = {name: parameter.numel() for name, parameter in canonical_parameters(model).items()}
    rows = [("block", "parameters", "worth", "+-", "work", "period", "drift", "names")]
    for index, (block, names) in enumerate(partition.items()):
        figures = ("-", "-", "-", "-", "-") if planner is None else _figures(planner, index)
        rows.append(
            (
                shortened(block),
                f"{sum(sizes[name] for name in names):,}",
                *figures,
                ", ".join(shorten_names(names)[:2]),
            )
        )
    lines = align_columns(rows)
    if partition.frozen:
        count = sum(sizes[name] for name in partition.frozen)
        lines.append(f"frozen by requires_grad=False, in no block: {count:,} parameters")
    known = planner is not None and planner.account.depths is not None
    state = "" if known else "; nothing is measured yet"
    asked = f"work of {budget.share:.2f} of full steps is asked for, a speed-up of {1 / budget.share:.2f}{state}"
    return "\n".join([*lines, asked])


def _figures(planner: Planner, index: int) -> tuple[str, str, str, str, str]:
    estimate = planner.signals.worth(index)
    worth = f"{estimate.mean:.3g}" if estimate.weight else "-"
    error = "-" if estimate.error is None else f"{estimate.error:.2g}"
    depths = planner.account.depths
    work = "-" if depths is None else f"{depths[index + 1] - depths[index]:.3f}"
    if not planner.plans:
        return worth, error, work, "-", "-"
    plan = planner.plans[-1]
    return worth, error, work, str(plan.periods[index]), str(plan.drift[index])
