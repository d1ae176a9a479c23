"""Updates of idle parameters after the step of the optimizer: drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hf_multirate.config.config import MultirateConfig
from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Step
from hf_multirate.model.step_part import StepPart
from hf_multirate.optim.drift import DisplacementDrift, DriftRule, SGDDrift
from hf_multirate.optim.dtensor import full_tensor, local, shard_of
from hf_multirate.optim.learning_rates import LearningRates
from hf_multirate.optim.loss_decrease import LossDecreaseAverages, LossDecreaseTracker
from hf_multirate.optim.state_check import check_drift
from hf_multirate.optim.update_group import DriftFactors, UpdateGroup, choose_rule


def moves_parameters(config: MultirateConfig) -> bool:
    """Whether the configuration changes parameters outside of the optimizer: drift or random subsets."""
    return any(
        group.random_subset is not None or (group.steps > 1 and group.idle == "drift") for group in config.groups
    )


class ParameterUpdater(StepPart):
    """Moves idle groups that drift. The optimizer updates the live groups."""

    def __init__(
        self,
        config: MultirateConfig,
        optimizer: Optimizer,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        rates: LearningRates,
        missed: Callable[[], Collection[nn.Parameter]] = tuple,
    ) -> None:
        """Sort the parameters of the rate groups by the parameter groups of the optimizer.

        Args:
            config: The configuration.
            optimizer: The optimizer.
            groups: Rate group name -> parameter name -> parameter.
            rates: Learning rates of the parameter groups of the optimizer.
            missed: Returns the parameters that had no gradient when they were last live. They do not drift.

        Raises:
            ValueError: the optimizer does not hold a parameter, or holds it duplicates.
        """
        self._optimizer = optimizer
        self._schedule = config.schedule
        self._missed = missed
        self._rates = rates
        self._drift_factor = config.drift_factor
        self._displacement = DisplacementDrift()
        self._names: dict[Tensor, str] = {p: name for members in groups.values() for name, p in members.items()}
        self._tracker = LossDecreaseTracker(optimizer, self._names, self._schedule, rates)
        group_index = self._places()
        update_groups = [
            self._update_group(i, rate_group, j, [p for p in groups[rate_group.name].values() if group_index[p] == j])
            for i, rate_group in enumerate(config.groups)
            for j in range(len(optimizer.param_groups))
        ]
        self._groups = [group for group in update_groups if group.parameters]
        self._adapts = any(group.factors.adapts for group in self._groups)

    def _places(self) -> dict[Tensor, int]:
        """Parameter -> index of its parameter group in the optimizer."""
        groups = self._optimizer.param_groups
        counts = Counter(p for group in groups for p in group["params"])
        duplicates = [name for p, name in self._names.items() if counts[p] > 1]
        if duplicates:
            raise ValueError(
                f"{len(duplicates)} parameters are in more than one group of the optimizer, e.g. {duplicates[:3]}, so "
                "their learning rate is ambiguous. Put each parameter into one group."
            )
        absent = [name for p, name in self._names.items() if p not in counts]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(self._names)} trainable parameters are not in the optimizer, e.g. "
                f"{absent[:3]}; they would never be updated. Add them to the optimizer, or freeze them with "
                "requires_grad=False. If they were unfrozen after a trainer created its optimizer, set "
                "trainer.optimizer = None before train()."
            )
        return {p: i for i, group in enumerate(groups) for p in group["params"]}

    def _update_group(
        self, index: int, rate_group: RateGroup, place: int, parameters: list[nn.Parameter]
    ) -> UpdateGroup:
        drifts = rate_group.idle == "drift" and rate_group.steps > 1
        constant = None if isinstance(self._drift_factor, str) else self._drift_factor
        if constant is None and (not drifts or type(self._optimizer) is SGD):
            constant = 1.0
        factors = DriftFactors(parameters, constant)
        return UpdateGroup(index, rate_group, place, parameters, self._rule(place), factors)

    def _rule(self, place: int) -> DriftRule:
        return choose_rule(self._optimizer, self._optimizer.param_groups[place], self._displacement)

    @property
    def loss_decrease(self) -> LossDecreaseAverages:
        """Averages of the first-order loss decrease, measured at full steps."""
        return self._tracker.averages

    def _repeats(self, group: UpdateGroup, step: Step) -> bool:
        """Whether ``group`` drifts after ``step`` and its drift rule has to record the step."""
        idles_next = group.drifts and self._schedule.steps_to_next_refresh(group.index, step.index) > 1
        return idles_next and group.rule.needs_snapshot

    def _has_drifted(self, group: UpdateGroup, step: Step) -> bool:
        idled = step.index > 0 and group.index not in self._schedule.live(step.index - 1)
        return idled and group.drifts and group.factors.adapts

    def _drifts_at(self, group: UpdateGroup, step: Step) -> bool:
        limit = group.rate_group.drift_steps
        return group.drifts and (limit is None or self._schedule.steps_since_refresh(group.index, step.index) <= limit)

    def _tracks(self, step: Step) -> bool:
        """Whether the loss decrease is tracked: at every second full step, or at all if drift factors adapt."""
        return step.complete and (self._adapts or step.index // self._schedule.cycle % 2 == 0)

    @torch.no_grad()
    def before_step(self, step: Step) -> bool:
        """Read the gradients, last updates and values of live groups before the optimizer changes them."""
        tracks = self._tracks(step)
        for group in self._groups:
            group.before, group.new_levels = [], {}
            if group.index in step.live and (tracks or group.drifts):
                self._read(group, step, tracks=tracks)
        return True

    def _read(self, group: UpdateGroup, step: Step, *, tracks: bool) -> None:
        stepped = [parameter for parameter in group.parameters if parameter.grad is not None]
        adapts = self._has_drifted(group, step)
        if tracks or adapts:
            products = self._tracker.track(group, stepped, step, counts=tracks)
            group.new_levels = group.factors.next_levels(products.read()) if adapts and products is not None else {}
        group.rule = self._rule(group.place)  # a schedule may switch momentum on or off
        if self._repeats(group, step):
            group.before = [local(parameter).clone() for parameter in stepped]

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Record the step of live groups that drift, and take a drift step of idle groups."""
        for group in self._groups:
            if group.index not in step.live:
                if self._drifts_at(group, step):
                    self._drift(group)
            elif group.drifts or group.before:
                self._finish(group, step)

    def _finish(self, group: UpdateGroup, step: Step) -> None:
        """Record the step of a live group for drift."""
        group.drift = None
        group.factors.set_levels(group.new_levels)
        if group.rule is not self._displacement:
            self._displacement.forget(group.parameters)
        if not group.before:
            return
        stepped = [parameter for parameter in group.parameters if parameter.grad is not None]
        if self._repeats(group, step):
            group.rule.record_step(stepped, group.before, self._optimizer.param_groups[group.place])
        group.before = []

    def moved(self, step: Step) -> Iterator[nn.Parameter]:
        """The parameters that change at ``step``: those of live groups and of idle groups that drift."""
        for group in self._groups:
            if group.index in step.live or self._drifts_at(group, step):
                yield from group.parameters

    def _drift(self, group: UpdateGroup) -> None:
        settings, missed = self._optimizer.param_groups[group.place], set(self._missed())
        # Parameters that were frozen during training do not drift.
        moving = [parameter for parameter in group.parameters if parameter.requires_grad and parameter not in missed]
        basis = group.rule.basis(moving, settings)
        if group.drift is None or not basis.same(group.basis):
            group.drift = group.rule.prepare_drift(moving, settings, group.factors.factors)
            group.basis = basis
        group.drift(self._rates.rate(group.place))

    @property
    def levels(self) -> dict[str, int]:
        """Parameter name -> level of its adaptive drift factor: see `hf_multirate.optim.update_group`."""
        return {self._names[p]: level for group in self._groups for p, level in group.factors.levels.items()}

    def rank_fingerprint(self) -> dict[str, str]:
        """Description -> value, for values that have to be the same in all processes of a run."""
        displaced = [self._names[p] for p in self._displacement.velocity]
        return {"the levels of drift": str(self.levels), "the parameters with a displacement": str(sorted(displaced))}

    @torch.no_grad()
    def state_dict(self) -> dict[str, dict[str, Any]]:
        """State for a checkpoint: recorded displacements and levels of drift factors, by parameter name.

        Tensors are saved unsharded, so that a run with another number of processes can load them.
        """
        velocity = self._displacement.velocity
        return {"displacement": {self._names[p]: full_tensor(v, p) for p, v in velocity.items()}, "level": self.levels}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Load a `state_dict`.

        Raises:
            ValueError: an entry has no parameter in this model, or does not fit its parameter.
        """
        by_name = {name: p for p, name in self._names.items()}
        check_drift(state, by_name)
        self._displacement.velocity = {
            by_name[name]: shard_of(value, by_name[name]) for name, value in state["displacement"].items()
        }
        levels = {by_name[name]: level for name, level in state["level"].items()}
        for group in self._groups:
            group.drift = None
            group.rule = self._rule_of_last_step(group)
            if group.factors.adapts:
                group.factors.set_levels({p: levels[p] for p in group.parameters if p in levels})

    def _rule_of_last_step(self, group: UpdateGroup) -> DriftRule:
        """The rule of the loaded state, because a schedule may have switched momentum on or off since."""
        if any(parameter in self._displacement.velocity for parameter in group.parameters):
            return self._displacement
        states = [self._optimizer.state.get(parameter, {}) for parameter in group.parameters]
        if type(self._optimizer) is SGD and any(state.get("momentum_buffer") is not None for state in states):
            return SGDDrift(self._optimizer)
        return self._rule(group.place)
