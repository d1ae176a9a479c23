"""Trial steps of a copy of an optimizer, with gradients for all or some of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.optim.optimizer_copy import MAX_ELEMENTS, OptimizerCopy
from hf_multirate.optim.write_guard import ProtectedTensorError, WriteGuard


EDGE = 8
"""Number of elements to which matrices are cut in each dimension."""
ATTEMPTS = ((EDGE, True), (EDGE, False), (None, False))
"""Pairs of edge and ``fresh``, in the order of the attempts: small copies without state first, full copies last."""
ROUNDS = 12
"""Number of trial steps, larger than the k of most optimizers that act at every k-th step."""
SAMPLES_PER_KIND = 4
"""Number of parameters of each kind that get gradients after the first step."""

_RATES = ("lr", "initial_lr", "weight_decay")
_SIMPLE_TYPES = (str, int, float, tuple)


class Trial:
    """A copy of an optimizer that has taken one step with gradients for all of its parameters.

    Args:
        optimizer_copy: The copy.
        closure: Argument of the first `step`; None for no argument.
    """

    def __init__(self, optimizer_copy: OptimizerCopy, closure: Callable[[], Tensor] | None = None) -> None:
        self._copy = optimizer_copy
        self.groups: list[list[nn.Parameter]] = [
            [p for p in group["params"] if p.requires_grad and p.numel()]
            for group in optimizer_copy.optimizer.param_groups
        ]
        self.parameters = list(optimizer_copy.stand_ins.values())
        self._guard = WriteGuard(optimizer_copy.originals)
        self.set("lr", 0.1)  # with the learning rate zero of a warm-up nothing would move or decay
        self.set("weight_decay", 0.1)
        self._start = self.values()
        self.step([p for group in self.groups for p in group], closure)

    def set(self, name: str, value: float) -> None:
        """Set ``name`` in all parameter groups that have it, those of inner optimizers included."""
        for group in (group for optimizer in self._copy.optimizers for group in optimizer.param_groups):
            if group.get(name) is not None:
                old = group[name]
                group[name] = torch.full_like(old, value) if isinstance(old, Tensor) else value

    def values(self) -> dict[Tensor, Tensor]:
        """Copies of the parameters."""
        return {parameter: parameter.detach().clone() for parameter in self.parameters}

    def step(self, live: Sequence[nn.Parameter], closure: Callable[[], Tensor] | None = None) -> None:
        """Take a step with gradients for only the ``live`` parameters.

        Raises:
            ProtectedTensorError: the step would have written to a tensor of the original.
        """
        for parameter in self.parameters:
            parameter.grad = None
        for parameter in live:
            parameter.grad = torch.ones_like(parameter)
        with self._guard:
            self._copy.optimizer.step(*(() if closure is None else (closure,)))
        if self._guard.stopped:
            raise ProtectedTensorError

    def unmoved(self) -> bool:
        """Whether there is a group whose parameters all have their initial values."""
        return any(group and all(torch.equal(p, self._start[p]) for p in group) for group in self.groups)

    def keeps_state(self) -> bool:
        """Whether all state is in the state dictionary of the optimizer itself, not in inner optimizers."""
        outer = self._copy.optimizer.state
        others = [optimizer.state for optimizer in self._copy.optimizers]
        return self._copy.optimizer.state is outer and all(state is outer or not state for state in others)

    def samples(self) -> list[list[nn.Parameter]]:
        """A few parameters of each kind: the same number of dimensions and the same settings of their group."""
        kinds: dict[tuple[str, int], list[nn.Parameter]] = {}
        for group, parameters in zip(self._copy.optimizer.param_groups, self.groups, strict=True):
            settings = {
                key: value for key, value in group.items() if key not in _RATES and isinstance(value, _SIMPLE_TYPES)
            }
            for parameter in parameters:
                kinds.setdefault((repr(settings), parameter.dim()), []).append(parameter)
        return [parameters_of_kind[:SAMPLES_PER_KIND] for parameters_of_kind in kinds.values()]

    def rounds(self) -> Iterator[list[nn.Parameter]]:
        """For each trial step the live parameters: the even and the odd samples alternately."""
        samples = self.samples()
        for step in range(ROUNDS):
            yield [p for parameters in samples for p in parameters[step % 2 :: 2]]


def run_trial(optimizer: Optimizer, closure: Callable[[], Tensor] | None = None) -> Trial:
    """Copy ``optimizer`` and take the first step of a trial.

    Raises:
        ProtectedTensorError: the step would have written to a tensor of the original.
        Exception: the error of the last attempt.
    """
    size = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    attempts = ATTEMPTS if size <= MAX_ELEMENTS else ATTEMPTS[:-1]
    for edge, fresh in attempts:
        try:
            return Trial(OptimizerCopy(optimizer, edge=edge, fresh=fresh), closure)
        except ProtectedTensorError:
            raise
        except Exception:
            if (edge, fresh) == attempts[-1]:
                raise
    raise AssertionError("there is at least one attempt")
