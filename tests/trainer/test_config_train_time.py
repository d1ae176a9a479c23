"""The time to train for in the configuration: the same run as with the time in the arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hf_multirate import MultirateConfig, MultirateTrainingArguments
from hf_multirate.reporting.run_record import read_record
from hf_multirate.trainer.train_time import FILE
from tests.support.clock import Clock
from tests.support.runs import assert_same, differ, example, history, weights
from tests.support.timed import ROWS, SETTINGS, Stream, Timed, by_kind, timed


class Costed(Timed):
    cost = staticmethod(by_kind)


def trained(folder: Path, config: MultirateConfig | None, kind: type = TrainingArguments, **more: Any) -> Any:
    model, rows = example("bert", ROWS)
    own = type("Costed", (Costed,), {"train_time_clock": Clock()})
    rows = more.pop("train_dataset", rows)
    trainer = own(model=model, args=kind(str(folder), **(SETTINGS | more)), train_dataset=rows, multirate=config)
    trainer.train()
    return trainer


def test_it_is_the_run_of_the_arguments_bit_for_bit(tmp_path: Path) -> None:
    theirs = timed(tmp_path / "arguments")
    theirs.train()
    for kind in (TrainingArguments, MultirateTrainingArguments):
        ours = trained(tmp_path / kind.__name__, MultirateConfig.for_time("1min", new_head=False), kind)
        assert ours.train_time_clock.now == pytest.approx(60.0, abs=1.0)
        assert_same(weights(ours), weights(theirs))
        assert_same(history(ours), history(theirs))
        assert ours.args.max_steps == -1
        assert (tmp_path / kind.__name__ / FILE).read_bytes() == (tmp_path / "arguments" / FILE).read_bytes()


def test_it_may_be_in_a_file_and_have_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(MultirateConfig(train_time="60", turns_seed=3).to_json())
    ours = trained(tmp_path / "run", None, MultirateTrainingArguments, multirate_config=str(path))
    assert ours.train_time_clock.now == pytest.approx(60.0, abs=1.0)
    more = {"multirate_train_time_plan": str(tmp_path / "run" / FILE)}
    for config in (MultirateConfig(turns_seed=3), MultirateConfig(turns_seed=3, train_time="60s")):
        again = trained(tmp_path / "again", config, MultirateTrainingArguments, **more)
        assert_same(weights(ours), weights(again))


def test_it_may_be_in_a_file_with_data_without_a_length(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(MultirateConfig(train_time="60").to_json())
    ours = trained(tmp_path, None, MultirateTrainingArguments, train_dataset=Stream(50), multirate_config=str(path))
    assert ours.train_time_clock.now == pytest.approx(60.0, abs=3.0)
    assert read_record(tmp_path).summary["train_time"] == 60.0


def test_with_a_new_head_the_lower_blocks_stay_and_the_head_has_its_start(tmp_path: Path) -> None:
    first = weights(trained(tmp_path, MultirateConfig.off(train_time="10s"), learning_rate=0.0))
    ours = trained(tmp_path, MultirateConfig.for_time("1min"))
    moved = differ(first, weights(ours))
    assert {"classifier.weight", "bert.encoder.layer.2.output.dense.weight"} <= moved
    frozen = ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1")
    assert not [name for name in moved if name.startswith(frozen)]
    assert ours.train_time_clock.now == pytest.approx(60.0, abs=1.0)
    assert any("multirate/head_start/steps" in entry for entry in ours.state.log_history)


def test_standard_training_has_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = trained(tmp_path, MultirateConfig.off(train_time="1min")).state.global_step
    assert steps == 60
    monkeypatch.setenv("HF_MULTIRATE", "off")
    assert trained(tmp_path, MultirateConfig.for_time("1min")).state.global_step == steps


def test_two_times_and_steps_beside_a_time_are_refused(tmp_path: Path) -> None:
    config = MultirateConfig.for_time("1min")
    with pytest.raises(ValueError, match="and train_time of the configuration is '1min'"):
        trained(tmp_path, config, MultirateTrainingArguments, multirate_train_time="2min")
    for kind in (TrainingArguments, MultirateTrainingArguments):
        with pytest.raises(ValueError, match="max_steps is 5 and train_time of the configuration is given too"):
            trained(tmp_path, config, kind, max_steps=5)
    with pytest.raises(NotImplementedError, match="does not work with stages"):
        trained(tmp_path, MultirateConfig.stages([(0.5, config), (1.0, config)]))
