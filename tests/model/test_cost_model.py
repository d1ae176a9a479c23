"""The cost model counts forward, weight gradients and input gradients."""

from __future__ import annotations

import pytest
from torch import nn

from hf_multirate import MultirateConfig
from hf_multirate.model.cost_model import StepCosts, boundary, layers_of
from hf_multirate.model.partition import assign


def _stack() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(9, 4), *(nn.Linear(4, 4, bias=False) for _ in range(4)))


@pytest.mark.parametrize(
    ("fast", "fast_cost"), [("4", 4 + 1), ("[34]", 4 + 2 + 1), ("0", 4 + 4), (r"[1-4]", 4 + 4 + 3)]
)
def test_cost_counts_forward_weight_gradients_and_input_gradients(fast: str, fast_cost: int) -> None:
    model = _stack()
    config = MultirateConfig.two_rate(fast, period=3, idle="drift")
    costs = StepCosts(["fast", "slow"], assign(config, model), layers_of(model))
    full = 4 + 4 + 4  # forward, weights, inputs of every layer: the table below requires a gradient too
    assert [costs.of((0, 1)), costs.of((0,))] == pytest.approx([1.0, fast_cost / full])
    assert costs.speedup(config.schedule.kinds) == pytest.approx(3 / (1.0 + 2 * fast_cost / full))


def test_boundary_is_the_first_live_parameter() -> None:
    assert boundary(layers_of(_stack()), {"4.weight", "2.weight"}) == "2.weight"
