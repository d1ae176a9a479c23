"""Training arguments build the configuration, and refuse what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_multirate import MultirateConfig, MultirateTrainer, MultirateTrainingArguments
from tests.support.runs import DEFAULTS, example


def _arguments(folder: Path, **settings: object) -> MultirateConfig:
    return MultirateTrainingArguments(output_dir=str(folder), report_to=[], **settings).to_multirate_config()


@pytest.mark.parametrize(("word", "same"), [(False, "off"), (True, "on")])
def test_off_and_on_of_yaml_are_what_they_say(tmp_path: Path, word: bool, same: str) -> None:
    args = MultirateTrainingArguments(output_dir=str(tmp_path), report_to=[], multirate=word)
    assert args.multirate == same
    assert _arguments(tmp_path, multirate=word) == _arguments(tmp_path, multirate=same)


def test_arguments_build_the_config(tmp_path: Path) -> None:
    given = {
        "multirate_fast": "head",
        "multirate_period": 3,
        "multirate_idle": "long_step",
        "multirate_inactive_forward": "train",
        "multirate_inactive_buffers": "freeze",
        "multirate_inactive_dtype": "bfloat16",
    }
    more = {"inactive_buffers": "freeze", "inactive_dtype": "bfloat16"}
    assert _arguments(tmp_path, **given) == MultirateConfig.two_rate(
        "head", 3, "long_step", inactive_forward="train", **more
    )
    assert _arguments(tmp_path) == MultirateConfig()
    assert _arguments(tmp_path, multirate_period=3) == MultirateConfig.two_rate(period=3)
    assert _arguments(tmp_path, multirate="off") == MultirateConfig.off()
    drifting = _arguments(tmp_path, multirate_drift_steps=2, multirate_idle="drift", multirate_fast="head")
    assert drifting == MultirateConfig.two_rate("head", drift_steps=2, idle="drift")
    assert [group.drift_steps for group in drifting.groups] == [None, 2]
    assert _arguments(tmp_path, multirate="new_head") == MultirateConfig.new_head()
    own = {"multirate_fast": "last:1", "multirate_head_start_steps": 9, "multirate_activation_cache": "memory"}
    assert _arguments(tmp_path, multirate="new_head", **own) == MultirateConfig.new_head(
        "last:1", head_start_steps=9, activation_cache="memory"
    )
    path = tmp_path / "c.json"
    path.write_text(MultirateConfig.two_rate("x", idle="drift").to_json())
    assert _arguments(tmp_path, multirate_config=str(path)) == MultirateConfig.two_rate("x", idle="drift")


def test_a_baseline_ignores_rate_groups_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(MultirateConfig.for_time("20min", lr_decay=0.9).to_json())
    kept = {"head_lr_scale": 10.0, "head_start": 16, "train_time": "20min", "lr_decay": 0.9}
    assert _arguments(tmp_path, multirate="off", multirate_config=str(path)) == MultirateConfig.off(**kept)
    groups = {"multirate_fast": "head", "multirate_period": 3, "multirate_speedup": 1.5}
    assert _arguments(tmp_path, multirate="off", multirate_lr_decay=0.9, **groups) == MultirateConfig.off(lr_decay=0.9)
    with pytest.raises(ValueError, match="multirate_fast, multirate_lr_decay are given too"):
        _arguments(
            tmp_path, multirate="off", multirate_config=str(path), multirate_fast="head", multirate_lr_decay=0.9
        )


def test_a_configuration_in_two_places_is_refused(tmp_path: Path) -> None:
    model, rows = example("bert")

    def trainer(**given: Any) -> MultirateTrainer:
        args = MultirateTrainingArguments(str(tmp_path), **{**DEFAULTS, **given})
        return MultirateTrainer(model=model, args=args, train_dataset=rows, multirate=MultirateConfig())

    path = tmp_path / "c.json"
    path.write_text(MultirateConfig.off().to_json())
    with pytest.raises(ValueError, match=r"multirate='off', which would be ignored.*HF_MULTIRATE=off"):
        trainer(multirate="off")
    with pytest.raises(ValueError, match="have multirate_fast='head', multirate_period=3, which would be ignored"):
        trainer(multirate_fast="head", multirate_period=3)
    with pytest.raises(ValueError, match=r"have multirate_config=.*which would be ignored"):
        trainer(multirate_config=str(path))
    beside: dict[str, Any] = {"multirate_record": False, "multirate_log": "all", "multirate_train_time": "1min"}
    assert trainer(**beside, max_steps=-1).multirate.config == MultirateConfig()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multirate": "maybe"}, "maybe"),
        ({"multirate_period": 0}, "at least 1"),
        ({"multirate_fast": "last:x"}, "last:x"),
        ({"multirate_config": "none.json"}, "none.json"),
        ({"multirate_config": "none.json", "multirate_fast": "head"}, "multirate_fast"),
        ({"multirate_drift_steps": -1}, "multirate_drift_steps must be at least 1"),
        ({"multirate_drift_steps": 2, "multirate_idle": "long_step"}, "only 'drift'"),
        ({"multirate_drift_steps": 1, "multirate": "auto"}, "multirate_drift_steps is given too"),
        ({"multirate_period": 3, "multirate": "new_head"}, "freezes the lower blocks, and multirate_period is given"),
        ({"multirate_config": "none.json", "multirate": "new_head"}, "multirate_config is given too"),
        (
            {"multirate_config": "none.json", "multirate_head_start_steps": 9},
            "multirate_head_start_steps is given",
        ),
        ({"multirate_fast": "ladder:1,2", "multirate": "new_head"}, "trains one part, and multirate_fast is 'ladder:"),
        (
            {"multirate_head_start": 0, "multirate_head_start_steps": 9, "multirate": "new_head"},
            "there is no head start",
        ),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_there(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        _arguments(tmp_path, **settings)
