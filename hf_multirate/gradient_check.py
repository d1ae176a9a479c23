"""Before every optimizer step: who should have a gradient has one, and nobody else has."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from torch import nn


logger = logging.getLogger(__name__)


class GradientCheck:
    """Compares the gradients that are there with those that the schedule asks for.

    A parameter that the loss never uses has no gradient in plain training either: it is named once in a
    warning. One that had a gradient before and gets none at its turn is an error, unless ``tolerant``. A whole group
    without any is one too, unless it had one before and ``tolerant``, or ``bare`` groups are allowed. What was frozen
    since training began is left out, and what was unfrozen is in no group: of both a warning tells once.

    Args:
        groups: Rate group name -> parameter name -> parameter.
        tolerant: Whether gradients may be missing now and then.
        bare: Whether a group may have had no gradient yet: those that nobody chose, in a model that skips layers.
        had: Parameters that had a gradient before this began, as those of a run that is resumed.
        others: Parameters by name that are in no group, since they were frozen when training began.
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        tolerant: bool,
        bare: bool = False,
        had: Iterable[nn.Parameter] = (),
        others: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._groups = groups
        self._tolerant = tolerant
        self._bare = bare
        self._has_had: set[nn.Parameter] = set(had)
        self._warned: set[str] = set()
        self._others = dict(others or {})
        self._told: set[str] = set()

    def check(self, live: frozenset[str], step: int) -> None:
        """Raise `RuntimeError` if gradients and live groups do not agree at ``step``."""
        if len(live) == len(self._groups):
            self._tell_unfrozen()
        for name, trained in self._groups.items():
            members = {key: parameter for key, parameter in trained.items() if parameter.requires_grad}
            if len(members) < len(trained):
                self._tell_frozen(name, (key for key in trained if key not in members))
            if not members:
                continue
            present = [parameter for parameter in members.values() if parameter.grad is not None]
            if name not in live:
                if present:
                    self._refuse_idle(name, members, step)
                continue
            if not present and not self._may_be_bare(members):
                raise RuntimeError(
                    f"rate group {name!r} got no gradient at step {step}, which is its turn: none of its "
                    f"{len(members)} parameters has one. If the model checkpoints its activations, use "
                    "use_reentrant=False; otherwise check that the loss depends on the group, or freeze what it does "
                    "not depend on with requires_grad=False."
                )
            if len(present) < len(members):
                self._missing(name, members, step)
            self._has_had.update(present)

    def _tell_frozen(self, group: str, names: Iterable[str]) -> None:
        new = self._news(names)
        if new:
            logger.warning(
                "%d parameters of rate group %r were frozen since training began, e.g. %s: they stay as they are.",
                len(new), group, new[:3],
            )  # fmt: skip

    def _tell_unfrozen(self) -> None:
        new = self._news(name for name, parameter in self._others.items() if parameter.requires_grad)
        if new:
            logger.warning(
                "%d parameters were unfrozen since training began, e.g. %s: they are in no rate group, so they get a "
                "gradient at every step, and backward goes down to them. Train in two runs, each with the parameters "
                "that it trains.",
                len(new), new[:3],
            )  # fmt: skip

    def _news(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that were not told of before."""
        new = [name for name in names if name not in self._told]
        self._told.update(new)
        return new

    def _may_be_bare(self, members: Mapping[str, nn.Parameter]) -> bool:
        return self._tolerant and (self._bare or not self._has_had.isdisjoint(members.values()))

    def _refuse_idle(self, name: str, members: Mapping[str, nn.Parameter], step: int) -> None:
        found = [key for key, parameter in members.items() if parameter.grad is not None]
        raise RuntimeError(
            f"rate group {name!r} is idle at step {step}, but {len(found)} of its parameters have a gradient, e.g. "
            f"{found[:3]}: the optimizer would move them twice. Either requires_grad was set during the step, or "
            "gradients were zeroed in place: call zero_grad(set_to_none=True); or the model was saved or evaluated "
            "after begin_step(step), which ends it: call begin_step(step) again before the forward pass."
        )

    def _missing(self, name: str, members: Mapping[str, nn.Parameter], step: int) -> None:
        missing = {key: parameter for key, parameter in members.items() if parameter.grad is None}
        lost = [key for key, parameter in missing.items() if parameter in self._has_had]
        if lost and not self._tolerant:
            raise RuntimeError(
                f"{len(lost)} parameters of rate group {name!r} got no gradient at step {step}, which is their turn, "
                f"though they had one before, e.g. {lost[:3]}. With reentrant activation checkpointing use "
                "use_reentrant=False; if the model skips layers at random, set missing_gradients='warn'."
            )
        if name not in self._warned:
            self._warned.add(name)
            logger.warning(
                "%d of %d parameters of rate group %r got no gradient at step %d and stay as they are: %s",
                len(missing), len(members), name, step, ", ".join(list(missing)[:5]),
            )  # fmt: skip
