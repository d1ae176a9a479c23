"""A run with a new head and frozen blocks says so if it is longer than that was measured to pay."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForTokenClassification

from hf_multirate import MultirateConfig
from hf_multirate.trainer.frozen_length import LONGEST_WITH_FEW, LONGEST_WITH_MANY, MANY_LABELS, advice_on_length
from tests.support.runs import example, trainer_for
from tests.support.timed import timed


NEW_HEAD = MultirateConfig.new_head(head_start=2, head_start_steps=2, head_start_lr=1e-3)
TEXT = "the lower blocks are frozen for"


@pytest.mark.parametrize(
    ("labels", "longest"), [(1, LONGEST_WITH_FEW), (2, LONGEST_WITH_FEW), (MANY_LABELS, LONGEST_WITH_MANY)]
)
def test_the_longest_run_depends_on_labels_and_is_counted_in_standard_training(labels: int, longest: float) -> None:
    model, _ = example("bert")
    model.config.num_labels = labels
    assert advice_on_length(NEW_HEAD, model, 2 * longest, 2.0) is None
    message = advice_on_length(NEW_HEAD, model, 2 * longest + 0.06, 2.0)
    assert message is not None
    assert f"{2 * longest + 0.06:.2f} epochs, which take as long as {longest + 0.03:.2f} epochs of standard" in message
    assert f"With {labels} labels, frozen blocks are advised for up to {longest:g} epochs of standard" in message
    assert ("as good or better" in message) == (labels < MANY_LABELS)
    assert ("were not compared" in message) == (labels == MANY_LABELS)
    assert "(measured: up to 250 steps of it)" in message
    settings = "head_lr_scale=10" if labels < MANY_LABELS else "head_lr_scale=10, head_start=16"
    assert f"Compare with MultirateConfig.off({settings}), or" in message


def test_with_a_label_for_each_token_no_run_is_short_enough() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9, "num_labels": 20}
    model = BertForTokenClassification(BertConfig(num_hidden_layers=2, **sizes))
    message = advice_on_length(NEW_HEAD, model, 0.1, 2.0)
    assert message is not None
    assert "for 0.10 epochs" in message
    assert "Each token has a label:" in message
    assert "MultirateConfig.off(head_lr_scale=10, head_start=16)" in message


@pytest.mark.parametrize(
    "config",
    [
        MultirateConfig(head_start=2),
        MultirateConfig.off(head_start=2),
        MultirateConfig.two_rate("last:1", "never"),  # frozen without a head start: for memory, perhaps
        MultirateConfig.stages([(0.5, NEW_HEAD), (1.0, NEW_HEAD)]),
    ],
    ids=["ladder", "off", "frozen", "stages"],
)
def test_other_settings_are_left_alone(config: MultirateConfig) -> None:
    model, _ = example("bert")
    assert advice_on_length(config, model, 99.0, 1.5) is None
    assert advice_on_length(NEW_HEAD, nn.Linear(2, 2), 99.0, 1.5) is None


def _messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if TEXT in record.getMessage()]


def test_a_run_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_for(tmp_path, NEW_HEAD, max_steps=1).train()
        assert not _messages(caplog)
        trainer = trainer_for(tmp_path, NEW_HEAD, max_steps=-1, num_train_epochs=3)
        trainer.train()
    (message,) = _messages(caplog)
    assert f"{TEXT} 3.00 epochs" in message
    assert f"as long as {3 / trainer.multirate.timing.speedup_predicted:.2f} epochs of standard" in message


def test_a_timed_run_says_it_when_its_length_is_settled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = timed(tmp_path, multirate="new_head", multirate_head_start=2, multirate_head_start_steps=2)
        trainer.train()
    (message,) = _messages(caplog)
    assert f"{TEXT} {trainer.train_time_plan.totals[0][1] / trainer._steps_per_epoch:.2f} epochs" in message


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(example("bert")[1])


def test_without_a_length_of_the_data_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for data, number in ((Stream(), 0), (example("bert")[1], 1)):
        trainer = timed(tmp_path, train_dataset=data, multirate="new_head")
        with caplog.at_level(logging.WARNING):
            trainer._advise_on_length(10**6)
        assert len(_messages(caplog)) == number
