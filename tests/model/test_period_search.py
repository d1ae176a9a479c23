"""The search for the periods of blocks: the ladder found is the best one, and the search has a bound."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import sqrt
from typing import Any

import numpy as np
import pytest

from hf_multirate.model import period_search
from hf_multirate.model.period_search import expected_values, search_ladder, work_of


@pytest.mark.parametrize("seed", range(25))
def test_no_ladder_within_the_budget_loses_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    number = int(random.integers(2, 9))
    values = list(random.uniform(0.1, 3, number))
    costs = random.uniform(0.05, 1, number)
    costs = list(0.7 * costs / costs.sum())
    budget = float(random.uniform(0.45, 1.0))
    found = search_ladder(values, costs, 0.3, budget, 16)
    every = [(1, *rest) for rest in combinations_with_replacement([1, 2, 4, 8, 16], number - 1)]
    fit = [periods for periods in every if work_of(costs, 0.3, periods) <= budget]

    def lost(periods: tuple[int, ...]) -> float:
        return sum(value * (1 - sqrt(1 / period)) for value, period in zip(values, periods, strict=True))

    if not fit:
        assert found == (1, *[16] * (number - 1))
        return
    assert found in fit
    assert lost(found) == pytest.approx(min(map(lost, fit)))


def test_more_value_or_less_cost_means_more_gradients() -> None:
    level = search_ladder([1.0] * 6, [0.1] * 6, 0.3, 0.5, 16)
    falling = search_ladder([32.0, 16.0, 8.0, 4.0, 2.0, 1.0], [0.1] * 6, 0.3, 0.5, 16)
    assert falling[1] < level[1]
    assert falling[-1] > level[-1]
    assert search_ladder([1.0] * 3, [0.1, 0.5, 0.05], 0.3, 0.6, 16) == (1, 4, 4)
    assert search_ladder([1.0] * 3, [0.1, 0.05, 0.5], 0.3, 0.6, 16) == (1, 1, 4)


def test_a_deep_model_has_a_ladder() -> None:
    periods = search_ladder([1.0] * 200, [0.7 / 200] * 200, 0.3, 0.5, 16)
    assert work_of([0.7 / 200] * 200, 0.3, periods) <= 0.5
    assert list(periods) == sorted(periods)


def test_expected_values_fall_with_depth_in_models_of_any_depth() -> None:
    assert expected_values(3) == pytest.approx([1, 1 / 4, 1 / 16])
    assert expected_values(1) == [1]
    assert expected_values(26)[-1] == pytest.approx(1 / 16)


@pytest.mark.parametrize("longest", [2, 16, 128, 1024])
def test_the_search_has_a_bound(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0

    def counting(*args: Any) -> Any:
        nonlocal tried
        for cuts in combinations_with_replacement(*args):
            tried += 1
            yield cuts

    monkeypatch.setattr(period_search, "combinations_with_replacement", counting)
    periods = search_ladder([1.0] * 34, [0.7 / 34] * 34, 0.3, 0.6, longest)
    assert work_of([0.7 / 34] * 34, 0.3, periods) <= max(0.6, work_of([0.7 / 34] * 34, 0.3, (1, *[longest] * 33)))
    assert 1 < tried <= period_search.MAX_LADDERS
