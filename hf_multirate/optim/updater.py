"""Move the parameters of every rate group around one step of the optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Schedule, Step
from hf_multirate.model.step_part import StepPart
from hf_multirate.optim.drift import DisplacementDrift, DriftRule, SGDDrift, scale_last_step_
from hf_multirate.optim.dtensor import local, shard_of, whole
from hf_multirate.optim.loss_decrease import LossDecreaseAverages, LossDecreaseTracker
from hf_multirate.optim.state_check import check_movement
from hf_multirate.optim.update_group import DriftFactors, UpdateGroup, choose_rule


def moves_parameters(config: MultirateConfig) -> bool:
    """Whether parameters are changed by anything but the optimizer: drift, longer steps or random subsets."""
    return any(
        group.random_subset is not None or group.lr_scale != 1.0 or (group.period > 1 and group.idle != "freeze")
        for group in config.groups
    )


class ParameterUpdater(StepPart):
    """Makes live groups take their step and idle ones drift; called right before and after ``optimizer.step()``.

    The optimizer moves every live parameter by itself. What is left to do is to make that step longer where
    ``lr_scale`` or ``long_step`` ask for it, and to move the idle groups that drift.
    """

    def __init__(
        self,
        config: MultirateConfig,
        optimizer: Optimizer,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        missed: Callable[[], Collection[nn.Parameter]] = tuple,
    ) -> None:
        """Sort the parameters of ``groups`` (rate group -> name -> parameter) by the optimizer's own groups.

        ``missed`` returns the parameters without a gradient at their last turn: they have no update to drift along.

        Raises:
            ValueError: the optimizer does not hold a parameter, or holds it twice.
        """
        self._optimizer = optimizer
        self._schedule: Schedule = config.schedule
        self._missed = missed
        self._drift_factor = config.drift_factor
        self._displacement = DisplacementDrift()
        self._names: dict[Tensor, str] = {p: name for members in groups.values() for name, p in members.items()}
        self._appraisal = LossDecreaseTracker(optimizer, self._names, self._schedule)
        counts = Counter(p for group in optimizer.param_groups for p in group["params"])
        twice = [name for p, name in self._names.items() if counts[p] > 1]
        if twice:
            raise ValueError(
                f"{len(twice)} parameters are in more than one group of the optimizer, e.g. {twice[:3]}: which "
                "learning rate they drift by is not known. Give each parameter to one group."
            )
        torch_group = {p: i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        unknown = [name for p, name in self._names.items() if p not in torch_group]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(self._names)} trainable parameters are not in the optimizer, e.g. "
                f"{unknown[:3]}: they would never be updated. Give them to the optimizer, or freeze them with "
                "requires_grad=False. If they were unfrozen since a trainer made its optimizer, set "
                "trainer.optimizer = None before train()."
            )
        self._buckets = [
            self._bucket(i, rate_group, j, [p for p in groups[rate_group.name].values() if torch_group[p] == j])
            for i, rate_group in enumerate(config.groups)
            for j in range(len(optimizer.param_groups))
        ]
        self._buckets = [bucket for bucket in self._buckets if bucket.parameters]

    def _bucket(self, index: int, group: RateGroup, torch_group: int, parameters: list[nn.Parameter]) -> UpdateGroup:
        rule = self._rule(torch_group)
        drifts = group.idle == "drift" and group.period > 1
        constant = None if isinstance(self._drift_factor, str) else self._drift_factor
        if constant is None and (not drifts or type(self._optimizer) is SGD):
            constant = 1.0
        return UpdateGroup(index, group, torch_group, parameters, rule, DriftFactors(parameters, constant))

    def _rule(self, torch_group: int) -> DriftRule:
        return choose_rule(self._optimizer, self._optimizer.param_groups[torch_group], self._displacement)

    @property
    def loss_decrease(self) -> LossDecreaseAverages:
        """First-order decrease of the loss by the last update of each parameter, at full steps."""
        return self._appraisal.averages

    def _stretch(self, bucket: UpdateGroup) -> float:
        """Factor on the step of the optimizer."""
        length = bucket.rate_group.period if bucket.rate_group.idle == "long_step" else 1
        return length * bucket.rate_group.lr_scale

    def _to_keep(self, bucket: UpdateGroup, step: Step) -> bool:
        """Whether drift repeats the step and the optimizer keeps no state to read it from."""
        repeats = self._schedule.steps_to_next_refresh(bucket.index, step.index) > 1
        return bucket.rate_group.idle == "drift" and repeats and bucket.rule.needs_snapshot

    def _to_look_back(self, bucket: UpdateGroup, step: Step) -> bool:
        drifted = step.index > 0 and bucket.index not in self._schedule.live(step.index - 1)
        return drifted and bucket.rate_group.idle == "drift" and bucket.trust.adapts

    def _drifts_at(self, bucket: UpdateGroup, step: Step) -> bool:
        if bucket.rate_group.idle != "drift":
            return False
        limit = bucket.rate_group.drift_steps
        return limit is None or self._schedule.steps_since_refresh(bucket.index, step.index) <= limit

    def _tracks(self, step: Step) -> bool:
        """Whether the loss decrease is tracked at ``step``: every second full step, or all that are looked back at."""
        adapts = any(bucket.trust.adapts for bucket in self._buckets)
        return step.full and (adapts or step.index // self._schedule.cycle % 2 == 0)

    @torch.no_grad()
    def before_step(self, step: Step) -> bool:
        """Look at the live groups while their gradients, last updates and old values are still there."""
        self._appraisal.begin(step, counts=self._tracks(step))
        for bucket in self._buckets:
            bucket.before, bucket.levels = [], {}
            if bucket.index not in step.live:
                continue
            stepped = [parameter for parameter in bucket.parameters if parameter.grad is not None]
            looks_back = self._to_look_back(bucket, step)
            slopes = self._appraisal.track(bucket, stepped, wanted=looks_back)
            bucket.levels = bucket.trust.update_levels(slopes) if looks_back else {}
            bucket.rule = self._rule(bucket.torch_group)  # a schedule may turn momentum on or off
            if self._to_keep(bucket, step) or self._stretch(bucket) != 1.0:
                bucket.before = [local(parameter).clone() for parameter in stepped]
        return True

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Stretch the step of live groups, and drift the idle ones. Not called for a step that was skipped."""
        for bucket in self._buckets:
            group = self._optimizer.param_groups[bucket.torch_group]
            if bucket.index not in step.live:
                if self._drifts_at(bucket, step):
                    self._drift(bucket, group)
                continue
            bucket.course = None
            bucket.trust.set(bucket.levels)
            if bucket.rule is not self._displacement:
                self._displacement.forget(bucket.parameters)
            if bucket.before:
                stepped = [parameter for parameter in bucket.parameters if parameter.grad is not None]
                if self._to_keep(bucket, step):
                    bucket.rule.record_step(stepped, bucket.before, group)
                if self._stretch(bucket) != 1.0:
                    scale_last_step_(stepped, bucket.before, self._stretch(bucket))
            bucket.before = []

    def moved(self, step: Step) -> Iterator[nn.Parameter]:
        """What a step moves: the parameters of live groups, and of idle ones that drift."""
        for bucket in self._buckets:
            if bucket.index in step.live or self._drifts_at(bucket, step):
                yield from bucket.parameters

    def _drift(self, bucket: UpdateGroup, group: Mapping[str, Any]) -> None:
        missed = set(self._missed())
        # Some may be frozen by now.
        moving = [parameter for parameter in bucket.parameters if parameter.requires_grad and parameter not in missed]
        basis = bucket.rule.basis(moving, group)
        if bucket.course is None or not basis.same(bucket.basis):
            bucket.course, bucket.basis = bucket.rule.prepare_drift(moving, group, bucket.trust.factors), basis
        bucket.course(float(group["lr"]) * bucket.rate_group.lr_scale)

    @property
    def levels(self) -> dict[str, int]:
        """Parameter name -> level of its drift, where it finds its own: see `hf_multirate.optim.update_group`."""
        return {self._names[p]: level for bucket in self._buckets for p, level in bucket.trust.levels.items()}

    def rank_fingerprint(self) -> dict[str, str]:
        """What all processes of a run have in common, in words."""
        displaced = [self._names[p] for p in self._displacement.velocity]
        return {"the levels of drift": str(self.levels), "the parameters with a displacement": str(sorted(displaced))}

    @torch.no_grad()
    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By parameter name: displacements, where the optimizer's state does not do, and levels of drift.

        Tensors are whole whatever the parameters are sharded over, so any number of processes can load them.
        """
        velocity = self._displacement.velocity
        return {"displacement": {self._names[p]: whole(v, p) for p, v in velocity.items()}, "level": self.levels}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over a `state_dict`.

        Raises:
            ValueError: an entry belongs to no parameter of this model, or is no drift of it.
        """
        by_name = {name: p for p, name in self._names.items()}
        check_movement(state, by_name)
        self._displacement.velocity = {
            by_name[name]: shard_of(value, by_name[name]) for name, value in state["displacement"].items()
        }
        levels = {by_name[name]: level for name, level in state["level"].items()}
        for bucket in self._buckets:
            bucket.course = None
            bucket.rule = self._rule_of_last_step(bucket)
            if bucket.trust.adapts:
                bucket.trust.set({p: levels[p] for p in bucket.parameters if p in levels})

    def _rule_of_last_step(self, bucket: UpdateGroup) -> DriftRule:
        """What `state_dict` and the optimizer hold says it: a schedule may have turned momentum on or off since."""
        if any(parameter in self._displacement.velocity for parameter in bucket.parameters):
            return self._displacement
        states = [self._optimizer.state.get(parameter, {}) for parameter in bucket.parameters]
        if type(self._optimizer) is SGD and any(state.get("momentum_buffer") is not None for state in states):
            return SGDDrift(self._optimizer)
        return self._rule(bucket.torch_group)
