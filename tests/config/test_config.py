"""Rate groups, configuration and schedule: values, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

import hf_multirate
from hf_multirate import MultirateConfig, MultirateTrainingArguments, RateGroup
from hf_multirate.config.schedule import Schedule, Step


BAD_GROUPS = {
    "unknown preset": ({"patterns": "lats:1"}, ValueError, "lats:1"),
    "no blocks": ({"patterns": "last:0"}, ValueError, "last:0"),
    "too deep": ({"patterns": "depth:1.5"}, ValueError, "depth:1.5"),
    "bad expression": ({"patterns": "layer.(5"}, ValueError, r"layer\.\(5"),
    "preset and expression": ({"patterns": ("head", "x")}, ValueError, "mixes"),
    "no string": ({"patterns": (3,)}, TypeError, "3"),
    "period zero": ({"period": 0}, ValueError, "at least 1, got 0"),
    "period negative": ({"period": -2}, ValueError, "got -2"),
    "period float": ({"period": 2.0}, TypeError, "2.0"),
    "period bool": ({"period": True}, TypeError, "True"),
    "idle": ({"idle": "sleep"}, ValueError, "sleep"),
    "lr_scale": ({"lr_scale": 0.0}, ValueError, "lr_scale"),
    "drift_steps zero": ({"idle": "drift", "drift_steps": 0}, ValueError, "must be at least 1, got 0"),
    "drift_steps negative": ({"idle": "drift", "drift_steps": -1}, ValueError, "must be at least 1, got -1"),
    "drift_steps float": ({"idle": "drift", "drift_steps": 1.5}, TypeError, "1.5"),
    "drift_steps of freeze": ({"drift_steps": 1}, ValueError, "'freeze': only 'drift'"),
    "drift_steps of long_step": ({"drift_steps": 1, "idle": "long_step"}, ValueError, "only 'drift'"),
    "part": ({"patterns": "part:3/2"}, ValueError, "part:3/2"),
    "ladder": ({"patterns": "ladder:1,2"}, ValueError, "MultirateConfig.ladder"),
    "no name": ({"name": ""}, ValueError, "name"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_a_bad_rate_group_is_refused_by_value(case: str) -> None:
    change, kind, words = BAD_GROUPS[case]
    with pytest.raises(kind, match=words):
        RateGroup(**{"name": "a", "patterns": ".*", "period": 1, **change})


BAD_CONFIGS = {
    "no fast group": ({"groups": [RateGroup("a", ".*", 2, idle="drift")]}, ValueError, "period 1"),
    "same name": (
        {"groups": [RateGroup("a", "x", 1), RateGroup("a", "y", 2, idle="drift")]},
        ValueError,
        "different names",
    ),
    "no group": ({"groups": [{"name": "a"}]}, TypeError, "RateGroup"),
    "drift_factor": ({"drift_factor": 1.1}, ValueError, "1.1"),
    "on_missing_gradient": ({"on_missing_gradient": "ignore"}, ValueError, "ignore"),
    "inactive_forward": ({"inactive_forward": "sleep"}, ValueError, "sleep"),
    "inactive_dtype": ({"inactive_dtype": "float8"}, ValueError, "float8"),
    "inactive_buffers": ({"inactive_buffers": "sleep"}, ValueError, "sleep"),
    "no pattern": ({"groups": [RateGroup("a", (), 1)]}, ValueError, "'a' has no pattern"),
    "group_fn": ({"group_fn": "norm"}, TypeError, "function of a name.*'norm'"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_refused_by_value(case: str) -> None:
    change, kind, words = BAD_CONFIGS[case]
    with pytest.raises(kind, match=words):
        MultirateConfig(**{"groups": [RateGroup("a", ".*", 1)], **change})


def test_ladder_is_equal_parts_from_the_top() -> None:
    config = MultirateConfig.ladder([1, 2, 4], "long_step", turns_seed=3)
    parts = [(group.name, group.patterns, group.period, group.idle) for group in config.groups]
    assert parts == [(f"part {i}", (f"part:{i}/3",), 2 ** (i - 1), "long_step") for i in (1, 2, 3)]
    assert config.turns_seed == 3


def test_two_rate_is_fast_over_all_the_rest() -> None:
    config = MultirateConfig.two_rate("head", period=3, idle="long_step", drift_factor=0.5)
    assert config.groups == (RateGroup("fast", "head", 1), RateGroup("slow", ".*", 3, "long_step"))
    assert config.drift_factor == 0.5


def test_json_and_dictionary_give_the_same_config_back(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate(
        ["a", "b"], period=7, turns_seed=2, on_missing_gradient="warn", inactive_forward="eval", idle="drift"
    )
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert MultirateConfig.from_json_file(path) == config == MultirateConfig.from_dict(config.to_dict())


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"groups": 3}', '{"groups": [], "colour": 1}', '{"groups": [{"name": "a"}]}']
)
def test_a_file_that_holds_no_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config|RateGroup|MultirateConfig"):
        MultirateConfig.from_json_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json"):
        MultirateConfig.from_json_file(tmp_path / "none.json")


def test_config_is_plain_json() -> None:
    assert json.loads(MultirateConfig.two_rate(idle="drift").to_json())["groups"][0]["patterns"] == ["depth:0.33"]


def test_schedule_refreshes_at_step_zero_and_at_every_kth() -> None:
    schedule = Schedule((1, 3))
    assert [len(schedule.live(step)) for step in range(7)] == [2, 1, 1, 2, 1, 1, 2]
    assert [schedule.phase(step) for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_steps_to_the_next_refresh_and_since_the_last() -> None:
    schedule = Schedule((1, 3))
    assert [schedule.steps_to_next_refresh(1, step) for step in (0, 3)] == [3, 3]
    assert [schedule.steps_since_refresh(1, step) for step in range(5)] == [0, 1, 2, 0, 1]


def test_a_step_has_its_index_its_live_groups_and_whether_these_are_all() -> None:
    schedule = Schedule((1, 3))
    assert [schedule.at(step) for step in (0, 1)] == [Step(0, (0, 1), True, True), Step(1, (0,), False, False)]


def test_the_default_is_a_ladder_that_freezes() -> None:
    default = MultirateConfig()
    assert default == MultirateConfig.ladder([1, 2, 4]) == MultirateConfig.ladder()
    assert [(group.period, group.idle) for group in default.groups] == [(1, "freeze"), (2, "freeze"), (4, "freeze")]


def test_with_a_new_head_the_lower_blocks_are_frozen_and_the_head_is_ahead() -> None:
    config = MultirateConfig.new_head()
    assert config == MultirateConfig.two_rate("depth:0.4", "never", head_lr_scale=10, head_start=16)
    own = MultirateConfig.new_head("last:1", head_start=4, lr_decay=0.8)
    assert own == MultirateConfig.two_rate("last:1", "never", head_lr_scale=10, head_start=4, lr_decay=0.8)


def test_for_a_given_time_a_new_head_is_assumed_unless_it_is_denied() -> None:
    assert MultirateConfig.for_time("9s", turns_seed=2) == MultirateConfig.new_head(train_time="9s", turns_seed=2)
    assert MultirateConfig.for_time(9, new_head=False) == MultirateConfig(train_time="9")
    with pytest.raises(TypeError, match="new_head must be True or False, got 'no'"):
        MultirateConfig.for_time("9s", new_head="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="time must be"):
        MultirateConfig.for_time(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'period'"):
        MultirateConfig.new_head(period=5)


def test_the_published_setting_drifts_in_full_at_fixed_positions() -> None:
    config = MultirateConfig.paper()
    assert [(group.patterns, group.period, group.idle) for group in config.groups] == [
        (("head",), 1, "freeze"),
        ((".*",), 5, "drift"),
    ]
    assert (config.drift_factor, config.inactive_forward, config.turns) == (1.0, "train", "fixed")


def test_cycle_is_the_least_common_multiple() -> None:
    assert Schedule((1, 2, 3)).cycle == 6


def test_everything_public_has_a_docstring_and_a_version() -> None:
    for name in hf_multirate.__all__:
        public = vars(hf_multirate)[name]
        assert isinstance(public, str) or public.__doc__, name
    assert {"Multirate", "MultirateConfig", "MultirateMixin", "MultirateTrainer", "MultirateTrainingArguments",
            "RateGroup"} <= set(hf_multirate.__all__)  # fmt: skip


def test_learning_rates_are_no_multirate_training() -> None:
    for config in (
        MultirateConfig((RateGroup("a", ".*", 1, lr_scale=2.0),)),
        MultirateConfig.off(head_lr_scale=10),
        MultirateConfig.off(lr_decay=0.8),
    ):
        assert config.is_standard_training
        assert config.scales_learning_rates
        assert config == MultirateConfig.from_dict(config.to_dict())
    assert not MultirateConfig.off().scales_learning_rates
    assert MultirateConfig.two_rate("head", 3, "long_step").takes_long_steps
    assert not MultirateConfig.two_rate("head", 1, "long_step").takes_long_steps


def test_drift_steps_of_a_ladder() -> None:
    config = MultirateConfig.ladder([1, 2, 4], idle="drift", drift_steps=2)
    assert {group.drift_steps for group in config.groups} == {2}


@pytest.mark.parametrize("value", [-1, 1.0, True])
def test_check_ranks_is_a_number_of_cycles(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="check_ranks_every must"):
        MultirateConfig.two_rate(check_ranks_every=value, idle="drift")


def test_check_ranks_on_the_command_line(tmp_path: Path) -> None:
    config = MultirateTrainingArguments(
        str(tmp_path), multirate_check_ranks_every=3, report_to=[]
    ).to_multirate_config()
    assert config.check_ranks_every == 3
