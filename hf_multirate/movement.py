"""Move the parameters of every rate group around one step of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.config import MultirateConfig, RateGroup
from hf_multirate.drift import DisplacementDrift, DriftRule, choose_rule, default_damping, stretch_


@dataclass
class _Bucket:
    """The parameters of one rate group that share a torch parameter group, with their drift rule."""

    index: int
    rate_group: RateGroup
    torch_group: int
    parameters: list[nn.Parameter]
    rule: DriftRule
    damping: float
    before: list[Tensor] = field(default_factory=list)


class Movement:
    """Makes live groups take their step and idle ones drift; called right before and after ``optimizer.step()``.

    The optimizer moves every live parameter by itself. What is left to do is to make that step longer where
    ``lr_scale`` or ``hold`` ask for it, and to move the idle groups that drift.
    """

    def __init__(
        self, config: MultirateConfig, optimizer: Optimizer, groups: Mapping[str, Mapping[str, nn.Parameter]]
    ) -> None:
        """Sort the parameters of ``groups`` (rate group -> name -> parameter) by the optimizer's own groups.

        Raises:
            ValueError: the optimizer does not hold a parameter.
        """
        self._optimizer = optimizer
        self._schedule = config.schedule
        self._drift_scale = config.drift_scale
        self._displacement = DisplacementDrift()
        self._names: dict[Tensor, str] = {p: name for members in groups.values() for name, p in members.items()}
        torch_group = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        unknown = [name for p, name in self._names.items() if p not in torch_group]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(self._names)} trainable parameters are not in the optimizer, e.g. "
                f"{unknown[:3]}: they would never be updated. Give them to the optimizer, or freeze them with "
                "requires_grad=False."
            )
        self._buckets = [
            self._bucket(i, rate_group, j, [p for p in groups[rate_group.name].values() if torch_group[p] == j])
            for i, rate_group in enumerate(config.groups)
            for j in range(len(optimizer.param_groups))
        ]
        self._buckets = [bucket for bucket in self._buckets if bucket.parameters]

    def _bucket(self, index: int, group: RateGroup, torch_group: int, parameters: list[nn.Parameter]) -> _Bucket:
        rule = choose_rule(self._optimizer, self._optimizer.param_groups[torch_group], self._displacement)
        damping = self._drift_scale
        if damping is None:
            damping = default_damping(self._optimizer, group.period)
        return _Bucket(index, group, torch_group, parameters, rule, damping)

    def _stretch(self, bucket: _Bucket, step: int) -> float:
        held = self._schedule.steps_to_next_refresh(bucket.index, step) if bucket.rate_group.idle == "hold" else 1
        return held * bucket.rate_group.lr_scale

    def _to_keep(self, bucket: _Bucket, step: int) -> bool:
        drifts = bucket.rate_group.idle == "drift" and self._schedule.steps_to_next_refresh(bucket.index, step) > 1
        return drifts and bucket.rule.needs_snapshot

    @torch.no_grad()
    def before_step(self, step: int, live: Sequence[int]) -> None:
        """Copy the values of those live parameters whose displacement is needed after the step."""
        for bucket in self._buckets:
            if bucket.index in live and (self._to_keep(bucket, step) or self._stretch(bucket, step) != 1.0):
                stepped = [parameter for parameter in bucket.parameters if parameter.grad is not None]
                bucket.before = [parameter.detach().clone() for parameter in stepped]

    @torch.no_grad()
    def after_step(self, step: int, live: Sequence[int]) -> None:
        """Stretch the step of live groups, and drift the idle ones."""
        for bucket in self._buckets:
            group = self._optimizer.param_groups[bucket.torch_group]
            if bucket.index not in live:
                if bucket.rate_group.idle == "drift":
                    bucket.rule.drift(bucket.parameters, group, bucket.rate_group.lr_scale, bucket.damping)
            elif bucket.before:
                stepped = [parameter for parameter in bucket.parameters if parameter.grad is not None]
                if self._to_keep(bucket, step):
                    bucket.rule.keep(stepped, bucket.before, group)
                if self._stretch(bucket, step) != 1.0:
                    stretch_(stepped, bucket.before, self._stretch(bucket, step))
            bucket.before = []

    def state_dict(self) -> dict[str, Tensor]:
        """Displacement buffers by parameter name; empty when every rule reads the optimizer's own state."""
        return {self._names[p]: velocity for p, velocity in self._displacement.velocity.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the buffers of `state_dict`.

        Raises:
            ValueError: a buffer belongs to no parameter of this model.
        """
        by_name = {name: p for p, name in self._names.items()}
        unknown = sorted(set(state) - set(by_name))
        if unknown:
            raise ValueError(
                f"the checkpoint has displacements of parameters that are not trained here, e.g. {unknown[:3]}. "
                "Resume with the model and configuration that wrote it."
            )
        self._displacement.velocity = {
            by_name[name]: value.to(by_name[name].device, copy=True) for name, value in state.items()
        }
