"""What a step costs, estimated from the model alone.

A weight matrix costs one unit per entry in the forward pass, one for the gradient of its input and
one for its own gradient. Embedding tables are looked up for next to nothing. The order of the
forward pass is taken to be that of the levels of a stack, and else the order in which modules were
registered, which holds for the models of transformers up to details: the first fast step shows
where it does not, see `hf_multirate.backward.cost_check`. Convolutions at different resolutions make the
estimate coarse.
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
    """A module with parameters of its own: their names, which of them are matrices, and its work in a forward pass.

    A parameter that is tied is named by the first of its modules only.
    """

    module: nn.Module
    parameters: tuple[str, ...]
    matrices: frozenset[str]
    forward: float


def layers_of(model: nn.Module) -> list[Layer]:
    """The modules of ``model`` that own parameters, in the order of the forward pass as far as it is known."""
    parameters = canonical_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers = []
    for module in _in_order(model):
        own = list(module.parameters(recurse=False))
        fresh = tuple(names.pop(id(parameter)) for parameter in own if id(parameter) in names)
        if own:
            work = 0 if isinstance(module, nn.Embedding) else sum(p.numel() for p in own if p.dim() > 1)
            matrices = frozenset(name for name in fresh if parameters[name].dim() > 1)
            layers.append(Layer(module, fresh, matrices, float(work)))
    return layers


def _in_order(model: nn.Module) -> list[nn.Module]:
    """From the bottom of the stack to the top; the order of registration within a level, and without a stack."""
    modules = list(model.modules())
    try:
        levels = levels_of(model, find_stack(model))
    except ValueError:  # it has none
        return modules
    return sorted(modules, key=lambda module: -levels[module])


def step_cost(layers: Sequence[Layer], live: Set[str]) -> float:
    """Units of work of a step at which the parameters named in ``live`` get a gradient.

    The gradient of a layer's input is needed if some layer before it is live: backward stops at the
    first live layer, the boundary. The gradient of a bias is a sum, which counts for nothing.
    """
    return sum(layer.forward + backward for layer, backward in _backward(layers, live))


def costs_by_depth(layers: Sequence[Layer], groups: Sequence[Collection[str]]) -> list[float]:
    """`step_cost` with none of ``groups`` live, with the first, with the first two, and so on, in one pass."""
    place = {name: i for i, names in enumerate(groups, 1) for name in names}
    never = len(groups) + 1
    added = [0.0] * (never + 1)
    below = never  # the first group with a parameter in a layer before
    for layer in layers:
        added[0] += layer.forward
        added[min((place.get(name, never) for name in layer.matrices), default=never)] += layer.forward
        added[below] += layer.forward
        below = min([below, *(place.get(name, never) for name in layer.parameters)])
    return list(accumulate(added[:never]))


def backward_costs(layers: Sequence[Layer], blocks: Mapping[str, str]) -> dict[str, float]:
    """Units of work of backward at a full step, by block; ``blocks`` has that of every parameter."""
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
    """Name of the first live parameter in the order of the forward pass; backward is skipped below it."""
    return next((name for layer in layers for name in layer.parameters if name in live), None)


class StepCosts:
    """Predicted cost of each kind of step, as a share of a full step.

    Args:
        groups: Names of the rate groups, in their order.
        partition: Rate group name -> names of its parameters.
        layers: The layers of the model, from `layers_of`.
    """

    def __init__(
        self, groups: Sequence[str], partition: Mapping[str, Collection[str]], layers: Sequence[Layer]
    ) -> None:
        self._members = [partition[name] for name in groups]
        self._layers = layers
        self._full = step_cost(layers, {name for names in self._members for name in names})
        self._known: dict[tuple[int, ...], float] = {}
        self.corrections = 0
        """How many kinds of steps were seen to have another cost than predicted."""

    def of(self, live: tuple[int, ...]) -> float:
        """Cost of a step at which the groups with the indices ``live`` get a gradient."""
        if live not in self._known:
            cost = step_cost(self._layers, {name for i in live for name in self._members[i]})
            self._known[live] = cost / self._full if self._full else 1.0
        return self._known[live]

    def correct(self, live: tuple[int, ...], cost: float) -> None:
        """Take over the cost of a kind of step that was seen."""
        self._known[live] = cost
        self.corrections += 1

    def speedup(self, kinds: Mapping[tuple[int, ...], int]) -> float:
        """Steps of a cycle over their cost: S(k) = k / (1 + (k - 1) r) for two rates.

        Args:
            kinds: Live groups -> number of such steps in a cycle.
        """
        return sum(kinds.values()) / sum(number * self.of(live) for live, number in kinds.items())
