"""A run resumed in the middle of a cycle is the uninterrupted run, bit for bit."""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from hf_multirate import MultirateConfig, RandomSubset, RateGroup
from tests.support.damage import rewrite
from tests.support.runs import FIVE, assert_same, differ, history, trainer_for, weights


# Checkpoints 3 to 6 are in phases 3, 0, 1 and 2; five more steps reach the refresh behind each of them.
PERIOD, LAST, CHECKPOINTS = 4, 11, (3, 4, 5, 6)
SETTINGS: dict[str, Any] = {"max_steps": LAST, "save_strategy": "steps", "save_steps": 1}
# Words that optim= does not know: SGD has momentum only by way of optimizer_cls_and_kwargs.
MOMENTUM = {"optimizer_cls_and_kwargs": (SGD, {"lr": 0.05, "momentum": 0.9})}
DISPLACEMENT = {"optim": "rmsprop"}


def config(idle: str = "drift", **settings: Any) -> MultirateConfig:
    return MultirateConfig.two_rate("last:2", PERIOD, idle, **{"turns": "fixed", **settings})


CASES: dict[str, tuple[MultirateConfig, dict[str, Any]]] = {
    "adamw-drift": (config(), {}),
    "adamw-longstep": (config("long_step"), {}),
    "adamw-freeze": (config("freeze"), {}),
    "adamw-accumulation": (config(), {"gradient_accumulation_steps": 2}),
    "momentum-drift": (config(), MOMENTUM),
    "momentum-longstep": (config("long_step"), MOMENTUM),
    "adafactor-drift": (config(), {"optim": "adafactor"}),
    "adafactor-longstep": (config("long_step"), {"optim": "adafactor"}),
    "rmsprop-drift": (config(), DISPLACEMENT),
    "rmsprop-accumulation": (
        config(),
        {"gradient_accumulation_steps": 4, **DISPLACEMENT},
    ),
    "adamw-drawn": (config(turns="drawn"), {}),
    "rmsprop-drawn": (config(turns="drawn"), DISPLACEMENT),
    "adamw-ladder": (MultirateConfig.ladder([1, 2, PERIOD], inactive_forward="eval", idle="drift"), {}),
    "rmsprop-ladder-longstep": (MultirateConfig.ladder([1, 2, PERIOD], "long_step"), DISPLACEMENT),
    "adamw-zero": (MultirateConfig.random_subsets(PERIOD, RandomSubset(biases=True)), {}),
    "momentum-zero-neurons": (MultirateConfig.random_subsets(PERIOD, RandomSubset(0.3, unit="neuron")), MOMENTUM),
    "adamw-bfloat16": (MultirateConfig.two_rate("last:1", PERIOD, inactive_dtype="bfloat16", idle="drift"), {}),
    "adamw-drift-steps": (
        MultirateConfig(
            (RateGroup("fast", "last:2", 1), RateGroup("slow", ".*", PERIOD, drift_steps=2, idle="drift"))
        ),
        {},
    ),
}


def outcome(trainer: Any) -> dict[str, Any]:
    assert trainer.state.global_step == LAST
    entries = history(trainer)
    assert [entry["step"] for entry in entries] == list(range(1, LAST + 1))
    return {"weights": weights(trainer), "history": entries, "optimizer": trainer.optimizer.state_dict()}


Whole = Callable[[str], tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A case -> folder with a checkpoint of every step, and what the uninterrupted run came to."""

    @functools.cache
    def train(case: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(case)
        chosen, settings = CASES[case]
        trainer = trainer_for(folder, chosen, **SETTINGS, **settings)
        assert trainer.model.config.hidden_dropout_prob > 0, "without dropout the random state is not tested"
        trainer.train()
        return folder, outcome(trainer)

    return train


def resumed(case: str, checkpoint: Path, folder: Path, chosen: MultirateConfig | None = None) -> dict[str, Any]:
    trainer = trainer_for(folder, chosen or CASES[case][0], **SETTINGS, **CASES[case][1])
    # Other weights than those that the run started from: they have to be restored.
    for parameter in trainer.model.parameters():
        parameter.data.add_(1.0)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return outcome(trainer)


@pytest.mark.parametrize("step", CHECKPOINTS)
@pytest.mark.parametrize("case", CASES)
def test_resumed_is_uninterrupted(tmp_path: Path, whole: Whole, case: str, step: int) -> None:
    if not FIVE and "accumulation" in case:
        pytest.skip("plain Trainer of 4.57 does not resume to the bit with accumulation")
    folder, wanted = whole(case)
    assert_same(resumed(case, folder / f"checkpoint-{step}", tmp_path), wanted)


def test_phases_of_the_checkpoints_are_all_there() -> None:
    for chosen, _ in CASES.values():
        phases = {chosen.cycles.phase(step) for step in CHECKPOINTS}
        assert phases == set(range(PERIOD)) or chosen.turns == "drawn"


@pytest.fixture
def copied(tmp_path: Path, whole: Whole) -> Callable[[str, int], Path]:
    """A case and a step -> a checkpoint to damage."""
    return lambda case, step: Path(
        shutil.copytree(whole(case)[0] / f"checkpoint-{step}", tmp_path / f"damaged-{case}" / f"checkpoint-{step}")
    )


@pytest.mark.parametrize("case", ["rmsprop-drift", "adafactor-drift"])
def test_displacements_are_needed_between_refreshes(tmp_path: Path, whole: Whole, copied: Any, case: str) -> None:
    checkpoint = copied(case, 3)
    assert rewrite(checkpoint / "multirate.json", lambda state: {**state, "displacement": {}}).state["displacement"]
    assert differ(resumed(case, checkpoint, tmp_path)["weights"], whole(case)[1]["weights"])


@pytest.mark.parametrize("case", ["adamw-drift", "adamw-longstep", "momentum-drift"])
def test_nothing_is_saved_that_the_optimizer_has(whole: Whole, case: str) -> None:
    files = list(whole(case)[0].rglob("multirate.pt"))
    assert len(files) == LAST
    assert [torch.load(path)["displacement"] for path in files] == [{}] * len(files)


@pytest.mark.parametrize("case", ["adamw-drift", "rmsprop-drift"])
def test_levels_of_drift_are_needed(tmp_path: Path, whole: Whole, copied: Any, case: str) -> None:
    checkpoint = copied(case, 5)
    kept = rewrite(checkpoint / "multirate.json", lambda state: {**state, "level": {}}).state
    assert set(kept["level"].values()) == {6, 8}  # one refresh has looked back
    assert differ(resumed(case, checkpoint, tmp_path)["weights"], whole(case)[1]["weights"])


def test_incomplete_checkpoint_is_refused(tmp_path: Path, copied: Any) -> None:
    checkpoint = copied("adamw-drift", 5)
    (checkpoint / "multirate.pt").unlink()
    with pytest.raises(ValueError, match=r"no multirate\.pt"):
        resumed("adamw-drift", checkpoint, tmp_path)


@pytest.mark.parametrize("case", ["adamw-drift", "adamw-longstep", "rmsprop-drift"])
def test_another_phase_is_another_run(tmp_path: Path, whole: Whole, copied: Any, case: str) -> None:
    checkpoint = copied(case, 5)
    rewrite(checkpoint / "multirate.json", dict, skipped_steps=1)
    got, wanted = resumed(case, checkpoint, tmp_path), whole(case)[1]
    phases = [[entry["multirate/phase"] for entry in result["history"]] for result in (got, wanted)]
    assert phases == [[0, 1, 2, 3, 0, 0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]]
    assert differ(got["weights"], wanted["weights"])


def test_other_rate_groups_warn(tmp_path: Path, whole: Whole, caplog: pytest.LogCaptureFixture) -> None:
    folder, wanted = whole("adamw-drift")
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        assert_same(resumed("adamw-drift", folder / "checkpoint-5", tmp_path), wanted)
        assert caplog.text == ""
        other = MultirateConfig.two_rate("last:2", 3, turns="fixed", idle="drift")
        got = resumed("adamw-drift", folder / "checkpoint-5", tmp_path, other)
    assert "configuration of checkpoint" in caplog.text
    assert "'period': 4" in caplog.text
    assert [entry["multirate/phase"] for entry in got["history"]] == [0, 1, 2, 3, 0, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("settings", [{}, DISPLACEMENT], ids=["adamw", "rmsprop"])
def test_from_a_plain_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: dict[str, Any]) -> None:
    plain = trainer_for(tmp_path / "plain", None, **SETTINGS, **settings)
    plain.train()
    trainer = trainer_for(tmp_path / "multirate", config(), **SETTINGS, **settings)
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-5"))
    assert "written without multirate training" in caplog.text
    entries = history(trainer)
    assert_same(entries[:5], history(plain)[:5])
    assert [entry["multirate/phase"] for entry in entries[5:]] == [1, 2, 3, 0, 1, 2]
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    assert differ(weights(trainer), weights(plain))
