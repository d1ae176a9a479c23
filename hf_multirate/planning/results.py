"""Results of planning: predicted costs of groups and steps, and the speed-up of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class GroupPlan:
    """Parameters of a rate group, and its FLOPs at a step of standard training.

    Attributes:
        name: Name of the group.
        period: Steps from one gradient to the next, or ``"never"``.
        parameters: Number of parameters.
        forward: FLOPs of products with its weights in the forward pass.
        activation_gradients: FLOPs of the activation gradients that are needed in addition to those of groups with
            shorter periods.
        weight_gradients: FLOPs of the gradients of its weights.
    """

    name: str
    period: int | str
    parameters: int
    forward: float
    activation_gradients: float
    weight_gradients: float


@dataclass(frozen=True)
class StepPlan:
    """Predicted cost of one kind of step.

    Attributes:
        live: Names of the live groups.
        per_cycle: Number of such steps in a cycle.
        flops: FLOPs of forward and backward.
        boundary: Name of the parameter below which backward is skipped; None if it is not skipped.
        memory: Bytes of weights, gradients, the two moments of Adam, and activations stored for backward.
        communicated: Bytes of gradients that each process sends in data-parallel training.
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
class StagePlan:
    """Predicted speed-up of a stage.

    Attributes:
        share: Share of the steps of training in the stage.
        plan: Plan of the configuration of the stage.
    """

    share: float
    plan: Plan


@dataclass(frozen=True)
class Plan:
    """Predicted speed-up of a configuration. With stages, groups and steps are empty: each stage has its own.

    Attributes:
        label: Label of the configuration in tables.
        groups: Plans of the rate groups.
        steps: Plans of the kinds of steps; the full step first.
        speedup: FLOPs of a step of standard training divided by the mean FLOPs of the steps of a cycle.
        bound: Limit of the speed-up for very long periods.
        blockers: Reasons for a low speed-up, as texts.
        speedup_measured: Speed-up over standard training from measured seconds; None if not measured.
        bound_measured: Limit of the measured speed-up for very long periods; None if not measured.
        cycle: Steps of a cycle, the longest one of the stages. With drawn turns and periods that do not divide each
            other, the steps are counted over more than one cycle.
        stages: Plans of the stages; empty without stages.
        speedup_kept: Speed-up of steps whose rows are all kept in the activation cache, as they are from the second
            epoch on; None without a cache. In stages without a cache, it is their speed-up.
        speedup_kept_measured: The same from measured seconds; None if not measured.
    """

    label: str
    groups: tuple[GroupPlan, ...]
    steps: tuple[StepPlan, ...]
    speedup: float
    bound: float
    blockers: tuple[str, ...]
    speedup_measured: float | None = None
    bound_measured: float | None = None
    cycle: int = 1
    stages: tuple[StagePlan, ...] = ()
    speedup_kept: float | None = None
    speedup_kept_measured: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain values."""
        return asdict(self)

    @property
    def parts(self) -> tuple[StagePlan, ...]:
        """The stages; without stages, the whole run as one."""
        return self.stages or (StagePlan(1.0, self),)

    @property
    def memory(self) -> tuple[float, float]:
        """Bytes at a full step and at the cheapest step, each the largest of the stages."""
        full, fast = zip(
            *((part.plan.steps[0].memory, part.plan.steps[-1].memory) for part in self.parts), strict=True
        )
        return max(full), max(fast)

    @property
    def communicated(self) -> float:
        """Mean bytes of gradients that each process sends at a step in data-parallel training."""
        if self.stages:
            return sum(part.share * part.plan.communicated for part in self.stages)
        number = sum(step.per_cycle for step in self.steps)
        return sum(step.per_cycle * step.communicated for step in self.steps) / number


def plans_reaching(target: float, plans: Sequence[Plan]) -> list[Plan]:
    """Plans whose speed-up (measured, if available) is at least ``target``, the smallest cycle first."""
    fast_enough = [p for p in plans if (p.speedup_measured or p.speedup) >= target]
    return sorted(fast_enough, key=lambda p: (p.cycle, -(p.speedup_measured or p.speedup)))
