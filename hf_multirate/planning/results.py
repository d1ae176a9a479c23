"""Results of `hf_multirate.plan`: one value for each setting, step and group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GroupPlan:
    """One rate group: its parameters, and the FLOPs of a step that are its own.

    The gradients of activations are those that the group adds to what groups of shorter periods need: those of its own
    layers and, for the first group below, of the layers in between.
    """

    name: str
    period: int
    parameters: int
    forward: float
    activation_gradients: float
    weight_gradients: float


@dataclass(frozen=True)
class StepPlan:
    """One kind of step.

    Attributes:
        live: Names of the groups that get a gradient.
        per_cycle: How many of a cycle's steps are of this kind.
        flops: FLOPs of forward and backward.
        boundary: The parameter below which backward is skipped.
        memory: Bytes of weights, gradients, the two moments of Adam, and activations kept for backward.
        communicated: Bytes of gradients that a process averages with others.
        seconds: Measured seconds of the whole step, or None.
    """

    live: tuple[str, ...]
    per_cycle: int
    flops: float
    boundary: str | None
    memory: float
    communicated: int
    seconds: float | None = None


@dataclass(frozen=True)
class Plan:
    """One setting.

    Attributes:
        label: What it is called in tables.
        speedup: Full steps over steps of a cycle, from FLOPs alone.
        bound: The speed-up that no period exceeds.
        speedup_measured: The same from seconds, against steps of standard training; None if not measured.
        blockers: What keeps time from being saved, in words.
    """

    label: str
    groups: tuple[GroupPlan, ...]
    steps: tuple[StepPlan, ...]
    speedup: float
    bound: float
    blockers: tuple[str, ...]
    speedup_measured: float | None = None
    bound_measured: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plans_reaching(target: float, plans: Sequence[Plan]) -> list[Plan]:
    """Those of ``plans`` that reach a speed-up, by what was measured if it was, the smallest cycle first."""
    fast_enough = [p for p in plans if (p.speedup_measured or p.speedup) >= target]
    return sorted(fast_enough, key=lambda p: (sum(s.per_cycle for s in p.steps), -(p.speedup_measured or p.speedup)))
