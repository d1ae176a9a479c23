"""What every block does for some time."""

from __future__ import annotations

from dataclasses import dataclass

from hf_multirate.schedule import Schedule


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
        turns: Position of gradients within periods: see `hf_multirate.schedule.Schedule`.
        turns_seed: Seed of drawn positions.
    """

    start: int
    until: int | None
    cycle_start: int
    periods: tuple[int, ...]
    drift: tuple[int, ...]
    worth: tuple[float, ...] | None = None
    turns: str = "fixed"
    turns_seed: int = 0

    @property
    def schedule(self) -> Schedule:
        """Which blocks get a gradient at which step."""
        return Schedule(self.periods, self.cycle_start, self.turns, self.turns_seed)
