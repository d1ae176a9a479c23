"""Check before each optimizer step that live parameters have a gradient and idle parameters have none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.distributed.tensor import DTensor

from hf_multirate.backward.gradient_checkpointing import parameters_inside_functions
from hf_multirate.config.schedule import Step
from hf_multirate.model.step_part import StepPart
from hf_multirate.model.unwrap import canonical_parameters


logger = logging.getLogger(__name__)

MAX_FULL_STEPS = 3
"""Full steps after which training stops if all slow groups, or all fast groups, never had a gradient."""


MAX_NAMES = 5
"""Largest number of parameter names in a warning."""


class MissingGradientCheck(StepPart):
    """Compares the present gradients with the gradients that the schedule requires.

    As in Trainer, a parameter without a gradient is skipped. The first time, a warning names such parameters. When
    training ends, a second warning says how often it happened. A step at which no parameter has a gradient, because
    the training step skipped its batch, changes nothing.

    Errors are raised in the cases that partial backward causes:

    - An idle parameter has a gradient.
    - A live parameter lost its gradient in a reentrant checkpoint at a fast step.
    - All slow groups, or all fast groups, never had a gradient in the first `MAX_FULL_STEPS` full steps.
    - With ``strict``: a parameter that had a gradient before has none at a step at which it is live.

    Parameters that are frozen during training are skipped. Parameters that are unfrozen belong to no group. A warning
    names both once.

    Args:
        groups: Rate group name -> parameter name -> parameter.
        model: The model that owns the parameters.
        strict: Whether a missing gradient is an error.
        cuts: Returns whether partial backward is active at the present step.
        had: Parameters that had a gradient before, as in a resumed run.
        others: Name -> parameter, for parameters that were frozen when training began and are in no group.
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        model: nn.Module | None = None,
        strict: bool = False,
        cuts: Callable[[], bool] = lambda: True,
        had: Iterable[nn.Parameter] = (),
        others: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._groups = groups
        self._model = model
        self._strict = strict
        self._cuts = cuts
        self._names = tuple(groups)
        self._had_gradient: set[nn.Parameter] = set(had)
        self._idled: set[str] = set()
        self._others = dict(others or {})
        self._full_steps = self._empty_steps = 0
        self._live_steps: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._named: set[str] = set()
        self._loses_gradients: dict[tuple[int, ...], bool] = {}
        self._in_functions: set[nn.Parameter] = set()
        self.missed: dict[str, nn.Parameter] = {}
        """Name -> parameter without a gradient when it was last live. It is not updated until it is live again."""

    @property
    def groups_without_gradient(self) -> frozenset[str]:
        """Names of the groups whose parameters never had a gradient."""
        return frozenset(
            name for name, members in self._groups.items() if self._had_gradient.isdisjoint(members.values())
        )

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool) -> Iterator[None]:
        """A context for a micro-batch that looks for checkpoints that lose gradients at fast steps.

        It looks at the first step of each set of live groups, and as long as gradients are missing for that set.
        """
        del last
        if self._model is None or step.full or not self._cuts() or not self._loses_gradients.get(step.live, True):
            yield
            return
        parameters = {p for name in self._live(step) for p in self._groups[name].values()}
        with parameters_inside_functions(self._model, parameters) as inside:
            yield
        self._in_functions |= inside

    def _live(self, step: Step) -> frozenset[str]:
        return frozenset(self._names[index] for index in step.live)

    def before_step(self, step: Step) -> bool:
        """Compare the present gradients with the gradients that ``step`` requires.

        Returns:
            Whether any parameter has a gradient.

        Raises:
            RuntimeError: one of the cases in the docstring of the class.
        """
        live = self._live(step)
        if step.complete:
            self._warn_of_unfrozen()
        self._idled |= self._groups.keys() - live
        members = {name: self._trained(name) for name in self._groups}
        for name in self._groups.keys() - live:
            self._check_idle_group(name, members[name], step.index)
        with_gradient = {name: {k: p for k, p in members[name].items() if p.grad is not None} for name in live}
        self._check_not_replaced(
            {k: p for name in live for k, p in members[name].items() if k not in with_gradient[name]}, step.index
        )
        if not any(with_gradient.values()) and not self._strict and not self._lost_in_functions(live):
            for name in live:  # none of them drifts until it is live again
                self.missed.update(members[name])
            return self._record_empty_step(step.index)
        self._full_steps += step.complete
        any_lost = False
        for name, present in with_gradient.items():
            self._live_steps[name] += 1
            missing = {key: p for key, p in members[name].items() if key not in present}
            any_lost |= not self._had_gradient.isdisjoint(missing.values())
            self._record_missing(name, members[name], missing, step.index)
            self._had_gradient.update(present.values())
        self._loses_gradients[step.live] = any_lost
        self._in_functions.clear()
        if step.complete:
            self._check_groups_without_gradient(step.index)
        return True

    def _trained(self, group: str) -> dict[str, nn.Parameter]:
        trained = self._groups[group]
        members = {key: parameter for key, parameter in trained.items() if parameter.requires_grad}
        if len(members) < len(trained):
            new = self._not_yet_named(key for key in trained if key not in members)
            if new:
                logger.warning(
                    "%d parameters of rate group %r were frozen during training, e.g. %s. They keep their values.",
                    len(new), group, new[:3],
                )  # fmt: skip
        return members

    def _warn_of_unfrozen(self) -> None:
        new = self._not_yet_named(name for name, parameter in self._others.items() if parameter.requires_grad)
        if new:
            logger.warning(
                "%d parameters were unfrozen during training, e.g. %s. They are in no rate group: they get a "
                "gradient at every step, and backward runs down to them. To keep the speed-up, train in two runs, "
                "each with its own trainable parameters.",
                len(new), new[:3],
            )  # fmt: skip

    def _not_yet_named(self, names: Iterable[str]) -> list[str]:
        """The names in ``names`` that no warning has named yet."""
        new = [name for name in names if name not in self._named]
        self._named.update(new)
        return new

    def _record_empty_step(self, step: int) -> bool:
        self._empty_steps += 1
        if self._empty_steps == 1:
            logger.warning(
                "no parameter has a gradient at step %d, so no parameter is updated, as in Trainer. The training step "
                "skipped the batch, or the gradients were removed after backward.", step,
            )  # fmt: skip
        return False

    def _record_missing(
        self, name: str, members: Mapping[str, nn.Parameter], missing: Mapping[str, nn.Parameter], step: int
    ) -> None:
        """Record the parameters of a live group without a gradient, and warn of them or raise `RuntimeError`."""
        for key in members:
            self.missed.pop(key, None)
        if not missing:
            return
        lost = [key for key, parameter in missing.items() if parameter in self._in_functions]
        if lost:
            raise RuntimeError(_lost_gradient_message(name, lost, step))
        had = [key for key, parameter in missing.items() if parameter in self._had_gradient]
        if self._strict and (had or len(missing) == len(members)):
            raise RuntimeError(
                f"{len(missing)} of {len(members)} parameters of rate group {name!r} got no gradient at step {step}, "
                f"at which the group is live, e.g. {(had or list(missing))[:3]}. Set on_missing_gradient='warn' to "
                "skip such parameters, as Trainer does."
            )
        first = self._misses.keys().isdisjoint(self._groups[name])
        self._misses.update(list(missing))
        self.missed.update(missing)
        if first:
            logger.warning(
                "%d of %d parameters of rate group %r got no gradient at step %d (live step %d of the group) and are "
                "not updated until the group is live again: %s. Further cases are counted and reported when training "
                "ends.",
                len(missing), len(members), name, step, self._live_steps[name], _listed(list(missing)),
            )  # fmt: skip

    def _lost_in_functions(self, live: frozenset[str]) -> bool:
        had = self._in_functions & self._had_gradient
        return any(parameter in had for name in live for parameter in self._groups[name].values())

    def _check_groups_without_gradient(self, step: int) -> None:
        """Raise `RuntimeError` if all slow or all fast groups had no gradient in `MAX_FULL_STEPS` full steps."""
        if self._full_steps < MAX_FULL_STEPS or not self._idled:
            return
        for kind, names in (("slow", self._idled), ("fast", self._groups.keys() - self._idled)):
            # Groups that rest for a stage are live at no step.
            trained = {name for name in names if self._live_steps[name] and self._trained(name)}
            if trained and trained <= self.groups_without_gradient:
                raise RuntimeError(
                    f"the {kind} rate groups {sorted(trained)} never got a gradient in {self._full_steps} full steps "
                    f"(the last is step {step}). The loss does not depend on them, or their gradients are lost in "
                    "detach(), torch.no_grad() or reentrant activation checkpointing (use use_reentrant=False). "
                    "Make the loss depend on them, or freeze them with requires_grad=False."
                )

    def _check_idle_group(self, name: str, members: Mapping[str, nn.Parameter], step: int) -> None:
        with_gradient = [key for key, parameter in members.items() if parameter.grad is not None]
        if with_gradient:
            raise RuntimeError(
                f"rate group {name!r} is idle at step {step}, but {len(with_gradient)} of its parameters have a "
                f"gradient, e.g. {with_gradient[:3]}; the optimizer would update them twice. Possible causes: "
                "(1) Code has set requires_grad during the step. "
                "(2) A backward pass ran outside of super().training_step, e.g. an adversarial one. Run it at full "
                "steps only (if trainer.multirate.is_full_step). "
                "(3) Gradients were zeroed in place. Call zero_grad(set_to_none=True). "
                "(4) The model was saved or evaluated after begin_step(step), which ends the partial backward. Call "
                "begin_step(step) again before the forward pass."
            )

    def _check_not_replaced(self, missing: Mapping[str, nn.Parameter], step: int) -> None:
        """Raise `RuntimeError` if parameters without a gradient were replaced in the model by other parameters."""
        # Parameters in `missed` were checked before. FSDP2 replaces sharded parameters during the forward pass.
        new = {k: p for k, p in missing.items() if k not in self.missed and not isinstance(p, DTensor)}
        if self._model is None or not new:
            return
        present = canonical_parameters(self._model)
        replaced = [key for key, parameter in new.items() if present.get(key, parameter) is not parameter]
        if replaced:
            raise RuntimeError(
                f"{len(replaced)} parameters got no gradient at step {step}, because the model has other parameters "
                f"in their place that the optimizer does not hold, e.g. {replaced[:3]}. Parameters must not be "
                "replaced during training, as load_state_dict(assign=True) does. Call load_state_dict without assign, "
                "or copy the values (parameter.data.copy_)."
            )

    def close(self) -> None:
        """Warn how often gradients were missing, unless they were missing only once."""
        live_steps = {key: self._live_steps[name] for name, members in self._groups.items() for key in members}
        repeated = {
            key: count
            for name, members in self._groups.items()
            for key, count in self._misses.items()
            if key in members and count > 1 and members[key] in self._had_gradient
        }
        if repeated:
            names = sorted(repeated, key=lambda key: -repeated[key])
            logger.warning(
                "gradients of %d parameters were missing at some of their live steps: %s.",
                len(repeated), _listed([f"{key} at {repeated[key]} of {live_steps[key]}" for key in names]),
            )  # fmt: skip
        if self._empty_steps > 1:
            logger.warning("no parameter had a gradient at %d steps of this run.", self._empty_steps)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def _lost_gradient_message(group: str, names: list[str], step: int) -> str:
    return (
        f"{len(names)} parameters of rate group {group!r} got no gradient at step {step}, at which the group is live, "
        f"e.g. {names[:3]}. They run inside reentrant activation checkpointing, which returns no gradient if none of "
        "its inputs requires one, as at a fast step. Set use_reentrant=False."
    )
