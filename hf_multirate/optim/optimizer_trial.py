"""Steps of a copy of an optimizer, with gradients for some of the parameters or for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_multirate.optim.optimizer_copy import LARGEST, Replica
from hf_multirate.optim.unchanged import Guard, TouchedError


EDGE = 8
ATTEMPTS = ((EDGE, True), (EDGE, False), (None, False))
"""Edge of matrices, and whether without state: small and new first, and as they are only if that fails."""
ROUNDS = 12
"""Steps of a trial: more than most optimizers that do something at every k-th step wait."""
TRIED = 4
"""Parameters of each kind that get gradients after the first step."""

_RATES = ("lr", "initial_lr", "weight_decay")
_PLAIN = (str, int, float, tuple)


class Trial:
    """A copy of an optimizer that has taken one step with gradients for all of its parameters.

    Args:
        replica: The copy.
        closure: What `step` is called with, if it needs something.
    """

    def __init__(self, replica: Replica, closure: Callable[[], Tensor] | None = None) -> None:
        self._replica = replica
        self.groups: list[list[nn.Parameter]] = [
            [p for p in group["params"] if p.requires_grad and p.numel()] for group in replica.optimizer.param_groups
        ]
        self.parameters = list(replica.stand_ins.values())
        self._guard = Guard(replica.originals)
        self.set("lr", 0.1)  # a warm-up may start at zero, where nothing would move or decay
        self.set("weight_decay", 0.1)
        self._start = self.values()
        self.step([p for group in self.groups for p in group], closure)

    def set(self, name: str, value: float) -> None:
        """Set an entry of all groups, of inner optimizers too, that have it."""
        for group in (group for optimizer in self._replica.optimizers for group in optimizer.param_groups):
            if group.get(name) is not None:
                old = group[name]
                group[name] = torch.full_like(old, value) if isinstance(old, Tensor) else value

    def values(self) -> dict[Tensor, Tensor]:
        """Copies of the parameters."""
        return {parameter: parameter.detach().clone() for parameter in self.parameters}

    def step(self, live: Sequence[nn.Parameter], closure: Callable[[], Tensor] | None = None) -> None:
        """Take a step with gradients for ``live`` alone."""
        for parameter in self.parameters:
            parameter.grad = None
        for parameter in live:
            parameter.grad = torch.ones_like(parameter)
        with self._guard:
            self._replica.optimizer.step(*(() if closure is None else (closure,)))
        if self._guard.stopped:
            raise TouchedError

    def unmoved(self) -> bool:
        """Whether all parameters of a group are where they started."""
        return any(group and all(torch.equal(p, self._start[p]) for p in group) for group in self.groups)

    def keeps_state(self) -> bool:
        """Whether all state is in one dictionary of the optimizer, and none in optimizers that it holds."""
        own = self._replica.optimizer.state
        others = [optimizer.state for optimizer in self._replica.optimizers]
        return self._replica.optimizer.state is own and all(state is own or not state for state in others)

    def samples(self) -> list[list[nn.Parameter]]:
        """Some parameters of each kind: alike in number of dimensions and in the settings of their group."""
        kinds: dict[tuple[str, int], list[nn.Parameter]] = {}
        for group, parameters in zip(self._replica.optimizer.param_groups, self.groups, strict=True):
            settings = {key: value for key, value in group.items() if key not in _RATES and isinstance(value, _PLAIN)}
            for parameter in parameters:
                kinds.setdefault((repr(settings), parameter.dim()), []).append(parameter)
        return [alike[:TRIED] for alike in kinds.values()]

    def rounds(self) -> Iterator[list[nn.Parameter]]:
        """Every other parameter of the samples, in turn with those between them."""
        samples = self.samples()
        for turn in range(ROUNDS):
            yield [p for alike in samples for p in alike[turn % 2 :: 2]]


def tried(optimizer: Optimizer, closure: Callable[[], Tensor] | None = None) -> Trial:
    """A trial of ``optimizer`` that has taken its first step.

    Raises:
        Exception: what the last attempt raised.
    """
    size = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    attempts = ATTEMPTS if size <= LARGEST else ATTEMPTS[:-1]
    for edge, fresh in attempts:
        try:
            return Trial(Replica(optimizer, edge=edge, fresh=fresh), closure)
        except TouchedError:
            raise
        except Exception:
            if (edge, fresh) == attempts[-1]:
                raise
    raise AssertionError("there is at least one attempt")
