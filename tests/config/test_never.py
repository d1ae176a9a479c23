"""The period ``"never"`` in configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_multirate import MultirateConfig, RandomSubset, RateGroup
from hf_multirate.cli import configs_of


def test_json_round_trip(tmp_path: Path) -> None:
    config = MultirateConfig.ladder([1, 2, "never"], lr_decay=0.9)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert json.loads(path.read_text())["groups"][2]["period"] == "never"
    assert MultirateConfig.from_json_file(path) == config


def test_the_schedule_has_it_at_no_step() -> None:
    config = MultirateConfig.ladder([1, 2, "never"], turns="fixed")
    assert config.schedule.periods == (1, 2, 0)
    assert not MultirateConfig.two_rate(period="never").is_standard_training
    assert [config.schedule.live(step) for step in (0, 1)] == [(0, 1), (0,)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"idle": "drift"}, "'a' has period 'never' and idle='drift', but .* leave idle out"),
        ({"idle": "long_step"}, "idle='long_step'"),
        ({"lr_scale": 2.0}, "lr_scale=2.0.* leave lr_scale out"),
        ({"random_subset": RandomSubset()}, "random_subset=RandomSubset"),
    ],
)
def test_settings_without_a_meaning(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateGroup("a", ".*", "never", **settings)


@pytest.mark.parametrize("periods", [["never"], ["never", "never"], [2, "never"]])
def test_some_group_has_period_one(periods: list[int | str]) -> None:
    with pytest.raises(ValueError, match=r"no rate group has period 1, got periods .*'never'"):
        MultirateConfig.ladder(periods)


@pytest.mark.parametrize("period", ["NEVER", "none", ""])
def test_other_words(period: str) -> None:
    with pytest.raises(TypeError, match="number of steps, or 'never', got"):
        RateGroup("a", ".*", period)


def test_configurations_of_the_command_line() -> None:
    configs = configs_of(["last:1", "ladder:1,2,never"], ["never"])
    assert configs["last:1, period never"] == MultirateConfig.two_rate("last:1", "never")
    assert configs["ladder:1,2,never"] == MultirateConfig.ladder([1, 2, "never"])
