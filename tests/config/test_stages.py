"""Configurations with stages, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_multirate import MultirateConfig, MultirateTrainingArguments, RateGroup
from hf_multirate.config.stages import Stage, stage_ends


TOP = MultirateConfig.two_rate("last:1", "never")
ALL = MultirateConfig.off()


def test_json_round_trip(tmp_path: Path) -> None:
    config = MultirateConfig.stages([(0.3, TOP), (1.0, MultirateConfig.ladder([1, 2], turns="fixed"))])
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert MultirateConfig.from_json_file(path) == config
    args = MultirateTrainingArguments(str(tmp_path), use_cpu=True, multirate_config=str(path))
    assert args.to_multirate_config() == config
    assert config.stage_list[0] == Stage(0.3, TOP)
    assert hash(config) == hash(MultirateConfig.stages(config.stage_list))


def test_properties_of_the_stages() -> None:
    config = MultirateConfig.stages([(0.5, TOP), (1, ALL)])
    assert config.has_never
    assert config.skips_backward
    assert not config.is_standard_training
    assert MultirateConfig.stages([(0.5, ALL), (1, ALL)]).is_standard_training
    long_step = MultirateConfig.two_rate("last:1", 2, "long_step")
    assert MultirateConfig.stages([(0.5, ALL), (1, long_step)]).takes_long_steps
    scaled = MultirateConfig([RateGroup("all", ".*", lr_scale=2.0)])
    assert MultirateConfig.stages([(0.5, scaled), (1, scaled)]).scales_learning_rates
    rates = MultirateConfig.off(head_lr_scale=10.0, head_start=4)
    staged = MultirateConfig.stages([(0.5, rates), (1, rates)])
    assert (staged.head_lr_scale, staged.head_start) == (10.0, 4)
    assert staged.without_groups() == rates


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "at least one"),
        ([(0.3, TOP), (0.9, ALL)], r"last stage must end at 1, the end of training, got \[0.3, 0.9\]"),
        ([(0.5, TOP), (0.3, ALL), (1, ALL)], r"must ascend, got \[0.5, 0.3, 1.0\]"),
        ([(0.5, TOP), (0.5, ALL), (1, ALL)], "must ascend"),
        ([(0, TOP), (1, ALL)], "above 0 and up to 1, got 0"),
        ([(0.5, TOP), (1.5, ALL)], "above 0 and up to 1, got 1.5"),
        ([(float("nan"), TOP), (1, ALL)], "must be finite"),
        ([(0.5, MultirateConfig.stages([(1, ALL)])), (1, ALL)], "stage 1 has stages, which stages do not support"),
        ([(0.5, ALL), (1, MultirateConfig.auto(1.5))], "stage 2 has automatic periods"),
        ([(0.5, ALL), (1, MultirateConfig.random_subsets())], "stage 2 has a random subset"),
        ([(0.5, ALL), (1, MultirateConfig.off(lr_decay=0.9))], "stage 2 .*lr_decay is 0.9 and 1.0"),
    ],
)
def test_stages_that_are_refused(stages: list[tuple[float, MultirateConfig]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultirateConfig.stages(stages)


@pytest.mark.parametrize("stages", [5, "ab", [5], [(0.5,)], [("0.5", ALL), (1, ALL)], [(0.5, "off"), (1, ALL)]])
def test_wrong_types(stages: Any) -> None:
    with pytest.raises(TypeError, match="stage"):
        MultirateConfig.stages(stages)


def test_settings_beside_the_stages() -> None:
    with pytest.raises(ValueError, match="a configuration with stages has no groups, turns: give them to each stage"):
        MultirateConfig(TOP.groups, turns="fixed", stage_list=[(1.0, ALL)])


@pytest.mark.parametrize("damage", [{"until": 2}, {"config": 5}, {"until": 1.0}, {"other": 1}])
def test_damaged_files(damage: dict[str, Any]) -> None:
    values = MultirateConfig.stages([(0.3, TOP), (1.0, ALL)]).to_dict()
    stage = values["stage_list"][0]
    values["stage_list"][0] = {"until": 1.0} if damage == {"until": 1.0} else {**stage, **damage}
    with pytest.raises((ValueError, TypeError), match=r"stage|Stage|multirate config"):
        MultirateConfig.from_dict(values)


def test_ends() -> None:
    assert stage_ends([0.3, 1.0], 10) == (3, 10)
    assert stage_ends([0.1, 0.2, 1.0], 3) == (0, 1, 3)
