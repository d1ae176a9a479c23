"""Runs that go on from a checkpoint with other batches, with a stream of rows, or with Trainer itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_multirate import MultirateConfig, MultirateTrainer, RateGroup
from tests.support.runs import CONFIG, PERIOD, assert_same, differ, example, phases, trainer_for, weights


SAVED, STEPS = PERIOD + 2, 2 * PERIOD + 3
SAVES: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED}
LADDER = MultirateConfig.ladder([1, 2, PERIOD], turns="fixed", idle="drift")


class Stream(IterableDataset[dict[str, Tensor]]):
    """Rows without a length."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from example("bert", 2 * STEPS)[1]


@pytest.mark.parametrize("config", [CONFIG, LADDER])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_stream_is_resumed(tmp_path: Path, config: MultirateConfig, accumulation: int) -> None:
    ends = []
    for checkpoint in (None, str(tmp_path / f"checkpoint-{SAVED}")):
        settings = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 2 // accumulation}
        trainer = trainer_for(tmp_path, config, **SAVES, **settings)
        trainer.train_dataset = Stream()
        trainer.train(resume_from_checkpoint=checkpoint)
        ends.append(weights(trainer))
        assert phases(trainer) == [config.cycles.phase(step) for step in range(STEPS)]
    assert_same(*ends)


@pytest.mark.parametrize(
    "change",
    [
        {"per_device_train_batch_size": 3},
        {"gradient_accumulation_steps": 2},
        {"auto_find_batch_size": True},
        {"auto_find_batch_size": True, "per_device_train_batch_size": 4},
    ],
)
def test_other_batches_from_a_checkpoint_on(tmp_path: Path, change: dict[str, Any]) -> None:
    trainer_for(tmp_path, CONFIG, **SAVES).train()
    ends = []
    for folder in ("one", "other"):
        trainer = trainer_for(tmp_path / folder, CONFIG, **{**SAVES, **change})
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
        assert trainer.state.global_step == STEPS
        assert trainer.multirate.applied_steps == STEPS - SAVED
        assert phases(trainer) == [step % PERIOD for step in range(STEPS)]
        ends.append(weights(trainer))
    assert_same(*ends)


class SmallMemory(MultirateTrainer):
    """Runs out of memory with batches of four."""

    sizes: tuple[int, ...] = ()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.sizes = (*self.sizes, len(inputs["labels"]))
        if len(inputs["labels"]) == 4:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(model, inputs, *args, **kwargs)


def test_a_resumed_run_that_runs_out_of_memory_begins_again_at_its_checkpoint(tmp_path: Path) -> None:
    trainer_for(tmp_path, CONFIG, **SAVES).train()
    settings: dict[str, Any] = {**SAVES, "per_device_train_batch_size": 4, "auto_find_batch_size": True}
    # The size of the batches is not taken from the checkpoint, where it is that of another memory.
    state = tmp_path / f"checkpoint-{SAVED}" / "trainer_state.json"
    state.write_text(state.read_text().replace('"train_batch_size": 2', '"train_batch_size": 4'))
    trainer = trainer_for(tmp_path / "small", CONFIG, kind=SmallMemory, **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    assert trainer.sizes[0] == 4
    assert set(trainer.sizes[1:]) <= {1, 2, 3}
    assert trainer.multirate.applied_steps == STEPS - SAVED
    assert phases(trainer)[-(STEPS - SAVED) :] == [step % PERIOD for step in range(SAVED, STEPS)]


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop"])
@pytest.mark.parametrize("step", [PERIOD, PERIOD + 2])
@pytest.mark.parametrize("config", [CONFIG, LADDER, MultirateConfig.auto(turns="fixed")])
def test_trainer_goes_on_from_our_checkpoints(tmp_path: Path, config: MultirateConfig, step: int, optim: str) -> None:
    settings = {**SAVES, "save_steps": step, "optim": optim}
    ours = trainer_for(tmp_path, config, **settings)
    ours.train()
    checkpoint = tmp_path / f"checkpoint-{step}"
    theirs = trainer_for(tmp_path / "theirs", None, **settings)
    assert type(theirs) is Trainer
    theirs.train(resume_from_checkpoint=str(checkpoint))
    assert theirs.state.global_step == STEPS
    # Nothing that Trainer does not write itself is of use to it.
    for name in ("multirate.json", "multirate.pt"):
        (checkpoint / name).unlink()
    off = trainer_for(tmp_path / "off", MultirateConfig.off(), **settings)
    off.train(resume_from_checkpoint=str(checkpoint))
    assert_same(weights(off), weights(theirs))
    assert differ(weights(theirs), weights(ours))
    saved = torch.load(checkpoint / "optimizer.pt")["state"]
    assert len(saved) == len(list(theirs.model.parameters()))


def rated(upper: float, lower: float, *, swapped: bool = False, period: int = 1, **settings: Any) -> MultirateConfig:
    groups = [RateGroup("upper", r"layer\.3\.", 1, lr_scale=upper)]
    groups.append(RateGroup("lower", r"layer\.0\.", period, lr_scale=lower))
    return MultirateConfig([*(groups[::-1] if swapped else groups), RateGroup("rest", ".*", 1)], **settings)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (rated(2.0, 3.0), rated(4.0, 3.0)),
        (rated(2.0, 3.0, period=2), rated(4.0, 3.0, period=2)),
        (rated(1.0, 1.0, head_lr_scale=10.0), rated(1.0, 1.0, swapped=True, head_lr_scale=10.0)),
    ],
    ids=["rates", "rates and period", "order"],
)
def test_groups_that_torch_would_give_the_state_of_others_are_an_error(
    tmp_path: Path, before: MultirateConfig, after: MultirateConfig
) -> None:
    trainer_for(tmp_path, before, **SAVES).train()
    checkpoint = str(tmp_path / f"checkpoint-{SAVED}")
    trainer_for(tmp_path / "same", before, **SAVES).train(checkpoint)
    with pytest.raises(ValueError, match=r"has the state of other parameters.*with those of the checkpoint"):
        trainer_for(tmp_path / "other", after, **SAVES).train(checkpoint)


def test_another_head_rate_is_used_from_a_checkpoint_on(tmp_path: Path, warnings_of: Any) -> None:
    trainer_for(tmp_path, MultirateConfig.ladder([1, 2], head_lr_scale=10.0), **SAVES).train()
    trainer = trainer_for(tmp_path / "other", MultirateConfig.ladder([1, 2], head_lr_scale=5.0), **SAVES)
    trainer.train = lambda: MultirateTrainer.train(trainer, str(tmp_path / f"checkpoint-{SAVED}"))
    assert "differs from the present one" in warnings_of(trainer)
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry and entry["step"] == SAVED + 1)
    rates = [value for key, value in entry.items() if "learning_rate/" in key]
    assert max(rates) == pytest.approx(5 * min(rates))
