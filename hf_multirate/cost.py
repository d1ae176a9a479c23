"""What a step costs, estimated from the model alone.

A weight matrix costs one unit per entry in the forward pass, one for the gradient of its input and
one for its own gradient. Embedding tables are looked up for next to nothing. The order of the
forward pass is taken to be the order in which modules were registered, which holds for the models
of transformers up to details; convolutions at different resolutions make the estimate coarse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import nn

from hf_multirate.names import named


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own: their names, which of them are matrices, and its work in a forward pass."""

    parameters: tuple[str, ...]
    matrices: frozenset[str]
    forward: float


def layers_of(model: nn.Module) -> list[Layer]:
    """The modules of ``model`` that own parameters, in order of registration; a tied one counts where it is first."""
    parameters = named(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    layers = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        fresh = tuple(names.pop(id(parameter)) for parameter in own if id(parameter) in names)
        if own:
            work = 0 if isinstance(module, nn.Embedding) else sum(p.numel() for p in own if p.dim() > 1)
            matrices = frozenset(name for name in fresh if parameters[name].dim() > 1)
            layers.append(Layer(fresh, matrices, float(work)))
    return layers


def step_cost(layers: Sequence[Layer], live: Set[str]) -> float:
    """Units of work of a step at which the parameters named in ``live`` get a gradient.

    The gradient of a layer's input is needed if some layer before it is live: backward stops at the
    first live layer, the boundary. The gradient of a bias is a sum, which counts for nothing.
    """
    return sum(layer.forward + backward for layer, backward in _backward(layers, live))


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

    def __init__(self, groups: Sequence[str], partition: Mapping[str, Sequence[str]], layers: Sequence[Layer]) -> None:
        self._members = [partition[name] for name in groups]
        self._layers = layers
        self._known: dict[tuple[int, ...], float] = {}

    def of(self, live: tuple[int, ...]) -> float:
        """Cost of a step at which the groups with the indices ``live`` get a gradient."""
        if live not in self._known:
            full = step_cost(self._layers, {name for names in self._members for name in names})
            cost = step_cost(self._layers, {name for i in live for name in self._members[i]})
            self._known[live] = cost / full if full else 1.0
        return self._known[live]

    def speedup(self, kinds: Mapping[tuple[int, ...], int]) -> float:
        """Steps of a cycle over their cost: S(k) = k / (1 + (k - 1) r) for two rates.

        Args:
            kinds: Live groups -> number of such steps in a cycle.
        """
        return sum(kinds.values()) / sum(number * self.of(live) for live, number in kinds.items())
