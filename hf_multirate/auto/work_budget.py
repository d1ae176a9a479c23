"""What steps take, what was spent so far, and what is left of the budget."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch.distributed as dist

from hf_multirate.auto.periods import Plan, slowest, work_of
from hf_multirate.auto.work_counter import UNSEEN, CountedWork
from hf_multirate.config.budget import Budget


PLANS = 4
"""Plans over which the budget is met, where the end of training is not known."""

MOST, MATTERS = 0.5, 2
"""A block with more than this share of backward is told of, in models of more blocks than this."""

ROUNDING = 1e-9

NEAR = 1.01
"""What is no more above the budget than this is as good as within it."""

logger = logging.getLogger(__name__)


class Account:
    """Keeps the account of a run in units of full steps: the same in all processes.

    Args:
        budget: What is asked for.
        members: Names of the parameters of each block, from the top of the model down.
        work: Counts the work of blocks.
        processes: Those that train together; None for one.
    """

    def __init__(
        self,
        budget: Budget,
        members: Sequence[Sequence[str]],
        work: CountedWork,
        processes: dist.ProcessGroup | None = None,
    ) -> None:
        self._budget = budget
        self._members = members
        self._work = work
        self._processes = processes
        self._first = 0
        self._spent = 0.0
        self._told = False
        self._counting = True
        self._unread: set[int] = set()
        self.depths: list[float] | None = None
        """Work of a step with none of the blocks live, with the first, and so on, as a share of a full one."""

    def open(self, step: int) -> None:
        """Training begins at ``step``."""
        self._first = step

    def look(self, *, full: bool) -> None:
        """A step begins, full or not, which tells more of the work of blocks until that is settled."""
        if self._counting:
            self._work.look(full=full)

    def next_pass(self) -> None:
        """A micro-batch begins."""
        self._work.next_pass()

    def close(self) -> None:
        """Leave nothing on the model."""
        self._work.stop()

    def count(self, names: Sequence[str], *, last: bool, unread: Collection[int] = ()) -> None:
        """What was seen so far tells the work of blocks, which have ``names``; all processes call it.

        Batches may be sorted by length, so the first of them alone says little. The ``last`` time settles it, but for
        blocks that are ``unread``: backward does not come to them, so they are no work, until they are read after all.
        """
        if not self._counting and set(unread) == self._unread:
            return
        members = [() if block in unread else names for block, names in enumerate(self._members)]
        first, self.depths = self.depths is None, self._work.by_depth(members, self._processes)
        self._counting, self._unread = self._counting and not last, set(unread)
        if last:
            self.close()
        if first:
            self._tell(names)

    def _tell(self, names: Sequence[str]) -> None:
        if not self._work.positions:
            logger.info(
                "shapes of batches are not seen here (torch.compile hides them), so the work of blocks is that of "
                "%d positions a step: the speed-up will not be quite the one asked for.", UNSEEN,
            )  # fmt: skip
        share, name = max(zip(self.costs, names, strict=True))
        share /= sum(self.costs) or 1.0
        if share > MOST and len(names) > MATTERS:
            logger.warning(
                "block %r has %.0f %% of the work of backward, so there is little to choose from: name smaller "
                "blocks, as in MultirateConfig.auto(blocks=[...]).", name, 100 * share,
            )  # fmt: skip

    @property
    def fixed(self) -> float:
        """Work of every step, whatever is live."""
        return self._known[0]

    @property
    def costs(self) -> list[float]:
        """Work of a gradient of each block."""
        return [high - low for low, high in pairwise(self._known)]

    @property
    def updates(self) -> list[float]:
        """Work of an idle step of each block at which it drifts."""
        return self._work.updates

    @property
    def _known(self) -> list[float]:
        assert self.depths is not None  # counted before the first plan
        return self.depths

    def drifting(self, periods: Sequence[int], drift: Sequence[int]) -> float:
        """Mean work of drift in a step."""
        blocks = zip(self.updates, periods, drift, strict=True)
        return sum(update * min(steps, period - 1) / period for update, period, steps in blocks)

    def cost(self, plan: Plan, step: int) -> float:
        """Work of ``step`` of ``plan``, drift included."""
        if self.depths is None:
            return 1.0
        since = [plan.schedule.steps_since_refresh(block, step) for block in range(len(self._members))]
        drifts = zip(since, plan.drift, self.updates, strict=True)
        return self.depths[since.count(0)] + sum(update for idle, steps, update in drifts if 0 < idle <= steps)

    def spend(self, plan: Plan, until: int) -> None:
        """``plan`` is over at the step ``until``."""
        self._spent += sum(self.cost(plan, step) for step in range(plan.start, until))

    def left(self, step: int, total_steps: int | None, *, last: bool) -> float:
        """Mean work of a step from ``step`` on, with which the budget is met, without the full steps between plans.

        What was spent above it is made up for until the end of training, or within a few plans where that is unknown.

        Args:
            step: The step at which a plan begins.
            total_steps: The step at which training ends, where that is known.
            last: Whether no other plan follows.
        """
        length = PLANS * self._budget.plan_steps if total_steps is None else max(1, total_steps - step)
        full = self._full_steps(length, last=last)
        left = self._budget.share * (step + length - self._first) - self._spent
        return (left - full) / max(1, length - full) + ROUNDING

    def _full_steps(self, length: int, *, last: bool) -> int:
        """Full steps with which plans begin that take ``length`` steps together."""
        return 0 if last else -(-length // self._budget.plan_steps)

    def warn_if_out_of_reach(self, step: int, total_steps: int | None, *, last: bool, lead: int = 0) -> None:
        """Say once if the budget cannot be met any more; arguments are those of `left`.

        The first block behind ``lead`` unread ones has period 1.
        """
        longest, share = self._budget.longest, self._budget.share
        slow = work_of(self.costs, self.fixed, (*[1] * lead, *slowest(len(self._members) - lead, longest)))
        length = self._budget.plan_steps if total_steps is None else max(1, total_steps - step)
        full = self._full_steps(length, last=last)
        least = full + slow * (length - full)
        best = least / length if total_steps is None else (self._spent + least) / (step + length - self._first)
        if best > NEAR * share and not self._told:
            self._told = True
            logger.warning(
                "a speed-up of %.2f was asked for, and this run allows %.2f at most, with all but the top block at "
                "every %dth step: periods are as long as they can be.", 1 / share, 1 / best, longest,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain values; all processes call it."""
        if self._counting:
            self._work.settle(self._processes)
        known = {"first": self._first, "spent": self._spent, "depths": self.depths, "updates": self.updates}
        seen = {
            "unread": sorted(self._unread),
            "counting": self._counting,
            "positions": dict(self._work.positions),
            "steps": self._work.steps,
        }
        return known | seen

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`."""
        self._first, self._spent, self.depths = state["first"], state["spent"], state["depths"]
        self._work.positions, self._work.steps = dict(state["positions"]), state["steps"]
        self._work.updates = state["updates"]
        self._counting, self._unread = state["counting"], set(state["unread"])
        if not self._counting:
            self.close()
