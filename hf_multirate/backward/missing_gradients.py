"""Before every optimizer step: live parameters have a gradient, and idle ones have none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn
from torch.distributed.tensor import DTensor

from hf_multirate.backward.gradient_checkpointing import inside_functions
from hf_multirate.config.schedule import Step
from hf_multirate.model.step_part import StepPart
from hf_multirate.model.unwrap import canonical_parameters


logger = logging.getLogger(__name__)

TURNS = 3
"""Full steps with gradients after which a slow or fast part that never had one ends training."""


SHOWN = 5
"""Names of parameters in a warning at most."""


class MissingGradientCheck(StepPart):
    """Compares the gradients that are there with those that the schedule asks for.

    The rule is that of Trainer: a parameter without a gradient is skipped. A warning names such parameters when that
    happens first, and a second one says how often it happened when training ends. A step at which no parameter has a
    gradient, of a batch that was given up, moves nothing.

    It is an error where the saving is to blame: a gradient of an idle parameter, or a gradient that is lost because
    nothing below a reentrant checkpoint requires one at a fast step. It is an error too if all slow groups, or all
    fast ones, never had a gradient in the first `TURNS` full steps. With ``strict`` each missing gradient of a
    parameter that had one before is an error.

    Frozen parameters are left out, and unfrozen ones are in no group: a warning names both once.

    Args:
        groups: Rate group name -> parameter name -> parameter.
        model: The model that owns them.
        strict: Whether gradients may never be missing.
        cuts: Whether backward is cut short at the fast step that begins, which then is watched.
        had: Parameters that had a gradient before this began, as those of a run that is resumed.
        others: Parameters by name that are in no group, since they were frozen when training began.
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
        self._has_had: set[nn.Parameter] = set(had)
        self._idled: set[str] = set()
        self._others = dict(others or {})
        self._full_steps = self._empty_steps = 0
        self._turns: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._said: set[str] = set()
        self._suspects: dict[tuple[int, ...], bool] = {}
        self._in_functions: set[nn.Parameter] = set()
        self.missed: dict[str, nn.Parameter] = {}
        """Parameters without a gradient at their last turn: they stay where they are until the next one."""

    @property
    def silent(self) -> frozenset[str]:
        """Names of the groups that never had a gradient."""
        return frozenset(name for name, members in self._groups.items() if self._has_had.isdisjoint(members.values()))

    @contextmanager
    def micro_batch(self, step: Step, *, last: bool) -> Iterator[None]:
        """A context for a micro-batch, which watches for checkpoints that lose gradients at fast steps.

        It does so at the first step of each set of live groups, and for as long as gradients are missing there.
        """
        del last
        if self._model is None or step.full or not self._cuts() or not self._suspects.get(step.live, True):
            yield
            return
        parameters = {p for name in self._live(step) for p in self._groups[name].values()}
        with inside_functions(self._model, parameters) as found:
            yield
        self._in_functions |= found

    def _live(self, step: Step) -> frozenset[str]:
        return frozenset(self._names[index] for index in step.live)

    def before_step(self, step: Step) -> bool:
        """Compare the gradients that are there with those that ``step`` asks for.

        Returns:
            Whether any parameter has one.

        Raises:
            RuntimeError: a gradient is there or missing against the rule of this class.
        """
        live = self._live(step)
        if step.full:
            self._name_unfrozen()
        self._idled |= self._groups.keys() - live
        members = {name: self._trained(name) for name in self._groups}
        for name in self._groups.keys() - live:
            self._refuse_idle(name, members[name], step.index)
        found = {name: {k: p for k, p in members[name].items() if p.grad is not None} for name in live}
        self._refuse_replaced(
            {k: p for name in live for k, p in members[name].items() if k not in found[name]}, step.index
        )
        if not any(found.values()) and not self._strict and not self._lost_in_functions(live):
            for name in live:  # their turn is over: none of them drifts until the next one
                self.missed.update(members[name])
            return self._empty(step.index)
        self._full_steps += step.full
        suspect = False
        for name, present in found.items():
            self._turns[name] += 1
            missing = {key: p for key, p in members[name].items() if key not in present}
            suspect |= not self._has_had.isdisjoint(missing.values())
            self._account(name, members[name], missing, step.index)
            self._has_had.update(present.values())
        self._suspects[step.live] = suspect
        self._in_functions.clear()
        if step.full:
            self._refuse_silence(step.index)
        return True

    def _trained(self, group: str) -> dict[str, nn.Parameter]:
        trained = self._groups[group]
        members = {key: parameter for key, parameter in trained.items() if parameter.requires_grad}
        if len(members) < len(trained):
            new = self._unsaid(key for key in trained if key not in members)
            if new:
                logger.warning(
                    "%d parameters of rate group %r were frozen since training began, e.g. %s: they stay as they are.",
                    len(new), group, new[:3],
                )  # fmt: skip
        return members

    def _name_unfrozen(self) -> None:
        new = self._unsaid(name for name, parameter in self._others.items() if parameter.requires_grad)
        if new:
            logger.warning(
                "%d parameters were unfrozen since training began, e.g. %s: they are in no rate group, so they get a "
                "gradient at every step, and backward goes down to them. Train in two runs, each with the parameters "
                "that it trains.",
                len(new), new[:3],
            )  # fmt: skip

    def _unsaid(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that were not named before."""
        new = [name for name in names if name not in self._said]
        self._said.update(new)
        return new

    def _empty(self, step: int) -> bool:
        self._empty_steps += 1
        if self._empty_steps == 1:
            logger.warning(
                "no parameter has a gradient at step %d, so nothing moves, as in Trainer: its batch was given up, or "
                "its gradients were taken away.", step,
            )  # fmt: skip
        return False

    def _account(
        self, name: str, members: Mapping[str, nn.Parameter], missing: Mapping[str, nn.Parameter], step: int
    ) -> None:
        """Take note of the parameters of a live group that have no gradient, and of those that have."""
        for key in members:
            self.missed.pop(key, None)
        if not missing:
            return
        lost = [key for key, parameter in missing.items() if parameter in self._in_functions]
        if lost:
            raise RuntimeError(_lost_in_function(name, lost, step))
        had = [key for key, parameter in missing.items() if parameter in self._has_had]
        if self._strict and (had or len(missing) == len(members)):
            raise RuntimeError(
                f"{len(missing)} of {len(members)} parameters of rate group {name!r} got no gradient at step {step}, "
                f"which is their turn, e.g. {(had or list(missing))[:3]}. Leave on_missing_gradient at 'warn' to skip "
                "such parameters, as Trainer does."
            )
        first = self._misses.keys().isdisjoint(self._groups[name])
        self._misses.update(list(missing))
        self.missed.update(missing)
        if first:
            logger.warning(
                "%d of %d parameters of rate group %r got no gradient at step %d (turn %d of the group) and stay as "
                "they are until their next turn, as in Trainer: %s. Further cases are counted, and summed up when "
                "training ends.",
                len(missing), len(members), name, step, self._turns[name], _listed(list(missing)),
            )  # fmt: skip

    def _lost_in_functions(self, live: frozenset[str]) -> bool:
        had = self._in_functions & self._has_had
        return any(parameter in had for name in live for parameter in self._groups[name].values())

    def _refuse_silence(self, step: int) -> None:
        """Raise `RuntimeError` if all that is slow, or all that is fast, has had `TURNS` turns and no gradient."""
        if self._full_steps < TURNS or not self._idled:
            return
        for kind, names in (("slow", self._idled), ("fast", self._groups.keys() - self._idled)):
            trained = {name for name in names if self._trained(name)}
            if trained and trained <= self.silent:
                raise RuntimeError(
                    f"the {kind} rate groups {sorted(trained)} never got a gradient in {self._full_steps} full steps, "
                    f"the last of which is step {step}: the loss does not depend on them, or their gradients are cut "
                    "off (detach(), torch.no_grad(), reentrant activation checkpointing: use use_reentrant=False). "
                    "Let the loss depend on them, or freeze them with requires_grad=False."
                )

    def _refuse_idle(self, name: str, members: Mapping[str, nn.Parameter], step: int) -> None:
        found = [key for key, parameter in members.items() if parameter.grad is not None]
        if found:
            raise RuntimeError(
                f"rate group {name!r} is idle at step {step}, but {len(found)} of its parameters have a gradient, "
                f"e.g. {found[:3]}: the optimizer would move them twice. Either requires_grad was set during the "
                "step; or a backward pass ran outside of super().training_step (an adversarial one: run it at full "
                "steps only, if trainer.multirate.is_full_step); or gradients were zeroed in place: call "
                "zero_grad(set_to_none=True); or the model was saved or evaluated after begin_step(step), which ends "
                "it: call begin_step(step) again before the forward pass."
            )

    def _refuse_replaced(self, missing: Mapping[str, nn.Parameter], step: int) -> None:
        """Raise `RuntimeError` if the model has other parameters by now in the place of some that lack a gradient."""
        # Those that had none at their last turn either were looked at then. A whole parameter stands in for a shard.
        new = {k: p for k, p in missing.items() if k not in self.missed and not isinstance(p, DTensor)}
        if self._model is None or not new:
            return
        present = canonical_parameters(self._model)
        replaced = [key for key, parameter in new.items() if present.get(key, parameter) is not parameter]
        if replaced:
            raise RuntimeError(
                f"{len(replaced)} parameters got no gradient at step {step}, since the model has other parameters in "
                f"their place now, which the optimizer does not know, e.g. {replaced[:3]}. Parameters were replaced "
                "while training goes on, as load_state_dict(assign=True) does: use load_state_dict without assign, or "
                "write into them (parameter.data.copy_)."
            )

    def close(self) -> None:
        """Warn how often gradients were missing, unless the first warning has said everything."""
        turns = {key: self._turns[name] for name, members in self._groups.items() for key in members}
        again = {
            key: count
            for name, members in self._groups.items()
            for key, count in self._misses.items()
            if key in members and count > 1 and members[key] in self._has_had
        }
        if again:
            often = sorted(again, key=lambda key: -again[key])
            logger.warning(
                "gradients were missing for %d parameters at some of their turns: %s.",
                len(again), _listed([f"{key} at {again[key]} of {turns[key]}" for key in often]),
            )  # fmt: skip
        if self._empty_steps > 1:
            logger.warning("no parameter had a gradient at %d steps in all.", self._empty_steps)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def _lost_in_function(group: str, names: list[str], step: int) -> str:
    return (
        f"{len(names)} parameters of rate group {group!r} got no gradient at step {step}, which is their turn, e.g. "
        f"{names[:3]}: they run inside a function of autograd that gives none unless one of its inputs requires one, "
        "and at a fast step nothing below does. It is reentrant activation checkpointing: use use_reentrant=False."
    )
