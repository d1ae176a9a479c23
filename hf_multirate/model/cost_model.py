"""Cost model: predicted work of each kind of step, from the weights of the model.

A weight matrix costs one unit per entry in the forward pass, one for the gradient of its input and one for its own
gradient. Embedding look-ups cost nothing. Modules are assumed to run in the order of their levels in the stack, and
in the order of registration within a level. This holds for most transformers models; the first fast step checks it,
see `hf_multirate.backward.cost_check`. The estimate is coarse for convolutions at different resolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from hf_multirate.model.levels import levels_of
from hf_multirate.model.stacks import find_stack
from hf_multirate.model.unwrap import canonical_parameters


@dataclass(frozen=True)
class Layer:
    """Module with direct parameters.

    Attributes:
        module: The module.
        parameters: Names of its parameters. A tied parameter is listed only for the first of its modules.
        matrices: Names of those parameters that are matrices.
        forward: Units of work of its forward pass.
    """

    module: nn.Module
    parameters: tuple[str, ...]
    matrices: frozenset[str]
    forward: float


def layers_of(model: nn.Module) -> list[Layer]:
    """Modules of ``model`` with direct parameters, in the assumed order of the forward pass."""
    parameters = canonical_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers = []
    for module in _in_order(model):
        direct = list(module.parameters(recurse=False))
        unlisted = tuple(names.pop(id(parameter)) for parameter in direct if id(parameter) in names)
        if direct:
            work = 0 if isinstance(module, nn.Embedding) else sum(p.numel() for p in direct if p.dim() > 1)
            matrices = frozenset(name for name in unlisted if parameters[name].dim() > 1)
            layers.append(Layer(module, unlisted, matrices, float(work)))
    return layers


def _in_order(model: nn.Module) -> list[nn.Module]:
    """Modules from the bottom of the stack to the top, in order of registration within a level or without a stack."""
    modules = list(model.modules())
    try:
        levels = levels_of(model, find_stack(model))
    except ValueError:  # the model has no stack
        return modules
    return sorted(modules, key=lambda module: -levels[module])


def step_cost(layers: Sequence[Layer], live: Set[str]) -> float:
    """Units of work of a step at which the parameters ``live`` get a gradient.

    The gradient of a layer's input is needed only if an earlier layer is live: backward stops at the first live layer,
    the boundary. The gradient of a bias costs nothing.
    """
    return sum(layer.forward + backward for layer, backward in _backward(layers, live))


def costs_by_depth(layers: Sequence[Layer], groups: Sequence[Collection[str]]) -> list[float]:
    """`step_cost` with the first 0, 1, 2, ... of ``groups`` live, computed in one pass over the layers."""
    place = {name: i for i, names in enumerate(groups, 1) for name in names}
    never = len(groups) + 1
    added = [0.0] * (never + 1)
    below = never  # the first group with a parameter in an earlier layer
    for layer in layers:
        added[0] += layer.forward
        added[min((place.get(name, never) for name in layer.matrices), default=never)] += layer.forward
        added[below] += layer.forward
        below = min([below, *(place.get(name, never) for name in layer.parameters)])
    return list(accumulate(added[:never]))


def backward_costs(layers: Sequence[Layer], blocks: Mapping[str, str]) -> dict[str, float]:
    """Units of work of backward at a full step for each block; ``blocks`` maps parameter names to blocks."""
    costs: dict[str, float] = {}
    for layer, backward in _backward(layers, blocks.keys()):
        if layer.parameters:
            block = blocks[layer.parameters[0]]
            costs[block] = costs.get(block, 0.0) + backward
    return costs


def _backward(layers: Sequence[Layer], live: Set[str]) -> Iterator[tuple[Layer, float]]:
    upstream = False
    for layer in layers:
        yield layer, layer.forward * (any(name in live for name in layer.matrices) + upstream)
        upstream = upstream or any(name in live for name in layer.parameters)


def boundary(layers: Sequence[Layer], live: Set[str]) -> str | None:
    """Boundary: name of the first live parameter in the order of the forward pass. Backward is skipped below it."""
    return next((name for layer in layers for name in layer.parameters if name in live), None)


class StepCosts:
    """Predicted cost of each kind of step, as a share of the cost of a step of standard training.

    A full step costs 1, unless there are parameters that never get a gradient.

    Args:
        groups: Names of the rate groups in order.
        partition: Rate group name -> names of its parameters.
        layers: Layers of the model, see `layers_of`.
        never: Names of the parameters that never get a gradient. Standard training trains them.
    """

    def __init__(
        self,
        groups: Sequence[str],
        partition: Mapping[str, Collection[str]],
        layers: Sequence[Layer],
        never: Collection[str] = (),
    ) -> None:
        self._members = [partition[name] for name in groups]
        self._layers = layers
        self._standard = step_cost(layers, {name for names in [*self._members, never] for name in names})
        self._costs: dict[tuple[int, ...], float] = {}
        self.corrections = 0
        """Number of kinds of steps whose predicted cost was corrected."""

    def of(self, live: tuple[int, ...]) -> float:
        """Cost of a step at which the groups with the indices ``live`` get a gradient."""
        if live not in self._costs:
            cost = step_cost(self._layers, {name for i in live for name in self._members[i]})
            self._costs[live] = cost / self._standard if self._standard else 1.0
        return self._costs[live]

    @property
    def full(self) -> float:
        """Cost of a full step; below 1 if some parameters never get a gradient."""
        return self.of(tuple(range(len(self._members))))

    def correct(self, live: tuple[int, ...], cost: float) -> None:
        """Replace the predicted cost of a kind of step by the observed ``cost``."""
        self._costs[live] = cost
        self.corrections += 1

    def speedup(self, kinds: Mapping[tuple[int, ...], int]) -> float:
        """Speed-up: steps of a cycle divided by their cost, relative to standard training.

        With two rates it is S(k) = k / (1 + (k - 1) r).

        Args:
            kinds: Live groups -> number of such steps in a cycle.
        """
        return sum(kinds.values()) / sum(number * self.of(live) for live, number in kinds.items())
