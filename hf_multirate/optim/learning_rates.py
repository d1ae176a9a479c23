"""Learning rates of rate groups in the optimizer, and long steps at a refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from hf_multirate.config.rate_group import RateGroup
from hf_multirate.config.schedule import Step
from hf_multirate.model.step_part import StepPart
from hf_multirate.optim.parameter_groups import FACTOR
from hf_multirate.optim.scaled_rates import ScaledRates


class LearningRates(StepPart):
    """Multiplies the learning rate of live groups during the step of the optimizer, where it lacks a factor.

    Parameter groups made by `hf_multirate.optim.parameter_groups` contain ``lr_scale`` already. What remains is the
    period of a group with ``idle="long_step"``, and the factors of an optimizer that was created in another way.

    Args:
        optimizer: The optimizer.
        rate_groups: The rate groups.
        members: Rate group name -> parameter name -> parameter.
        factors: Parameter -> factor on the learning rate, see `hf_multirate.model.learning_rates`.

    Raises:
        ValueError: one parameter group of the optimizer contains parameters that need different factors.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rate_groups: Sequence[RateGroup],
        members: Mapping[str, Mapping[str, nn.Parameter]],
        factors: Mapping[nn.Parameter, float],
    ) -> None:
        self._names = [group.name for group in rate_groups]
        owner = {p: (i, name) for i, group in enumerate(rate_groups) for name, p in members[group.name].items()}
        self._missing: list[float] = []
        """Factor that the learning rate of each parameter group lacks."""
        self._steps: list[float] = []
        """Factor on the step of each parameter group: ``_missing`` times the period of a long step."""
        self._groups: list[set[int]] = []
        """Rate groups in each parameter group of the optimizer."""
        for index, settings in enumerate(optimizer.param_groups):
            owned = [(*owner[p], factors[p] / settings.get(FACTOR, 1.0)) for p in settings["params"] if p in owner]
            self._missing.append(owned[0][2] if owned else 1.0)
            self._groups.append({i for i, _, _ in owned})
            self._steps.append(_common(index, [(name, f * _length(rate_groups[i])) for i, name, f in owned]))
        self._scaled = ScaledRates(optimizer)

    def before_step(self, step: Step) -> bool:
        """Multiply the learning rates of the parameter groups with live parameters."""
        self.end()
        for index, factor in enumerate(self._steps):
            if factor != 1.0 and self._groups[index] & set(step.live):
                self._scaled.scale(index, factor)
        return True

    def end(self) -> None:
        """Restore the learning rates."""
        self._scaled.restore()

    def close(self) -> None:
        """Restore the learning rates, after a step that raised an error."""
        self.end()

    def rate(self, index: int) -> float:
        """Learning rate of parameter group ``index`` with its factor, without the period of a long step."""
        return float(self._scaled.given(index)) * self._missing[index]

    def by_rate_group(self) -> dict[str, tuple[float, float]]:
        """Rate group name -> its lowest and its highest learning rate."""
        rates: dict[str, list[float]] = {name: [] for name in self._names}
        for index, groups in enumerate(self._groups):
            for i in groups:
                rates[self._names[i]].append(self.rate(index))
        return {name: (min(found), max(found)) for name, found in rates.items() if found}

    @property
    def scales(self) -> bool:
        """Whether the step of some parameter group needs a factor."""
        return any(factor != 1.0 for factor in self._steps)


def _length(group: RateGroup) -> int:
    """Factor on the step at a refresh: the period of a group with long steps."""
    return group.steps if group.idle == "long_step" else 1


def _common(index: int, factors: Sequence[tuple[str, float]]) -> float:
    by_factor = {factor: name for name, factor in reversed(factors)}
    if len(by_factor) > 1:
        examples = ", ".join(f"{name!r} ({factor:g})" for factor, name in sorted(by_factor.items()))
        raise ValueError(
            f"parameter group {index} of the optimizer contains parameters with different factors on the learning "
            f"rate (lr_scale, head_lr_scale, lr_decay or long steps): {examples}. Create the groups of the optimizer "
            "with multirate_parameter_groups(model, config, lr=...)."
        )
    return next(iter(by_factor), 1.0)
