"""Damaged, foreign and stale files in a checkpoint: one error that names the file, or one warning."""

from __future__ import annotations

import json
import pickle
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, RMSprop
from transformers import Trainer

from hf_multirate import AveragedCopies, AveragedCopiesTrainer, CopiesConfig, Multirate, MultirateConfig
from hf_multirate.config.files import write_whole
from hf_multirate.trainer.checkpoint_files import read_saved, write_saved
from tests.support.damage import TEXTS, damage, mutations, rewrite
from tests.support.runs import CONFIG, PERIOD, arguments, assert_same, example, trainer_for, weights
from tests.support.small import batch, network


STEP = 3
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": STEP, "max_steps": STEP}


def copies_for(folder: Path, **settings: Any) -> AveragedCopiesTrainer:
    model, rows = example("bert")
    args = arguments(folder, **settings)
    return AveragedCopiesTrainer(
        model=model, args=args, train_dataset=rows, copies=CopiesConfig((1, 2), turns="fixed")
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of a run with displacements, and one of averaged copies."""
    folder = tmp_path_factory.mktemp("written")
    trainer_for(folder / "multirate", CONFIG, optim="rmsprop", **SAVING).train()
    copies_for(folder / "averaged_copies", **SAVING).train()
    return folder


@pytest.fixture
def stem() -> str:
    return "multirate"


@pytest.fixture
def checkpoint(written: Path, stem: str, tmp_path: Path) -> Path:
    name = f"checkpoint-{STEP}"
    return Path(shutil.copytree(written / stem / name, tmp_path / "kept" / name))


def resumed(checkpoint: Path, folder: Path, config: MultirateConfig | None = CONFIG, **settings: Any) -> Trainer:
    trainer = trainer_for(folder, config, optim="rmsprop", max_steps=STEP + 2, **settings)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def require_named(error: pytest.ExceptionInfo[ValueError], path: Path) -> None:
    """The error is one line that names the file and the remedy; nothing of torch's advice is shown anywhere."""
    told = str(error.value)
    assert repr(str(path)) in told
    assert "earlier checkpoint" in told
    assert "\n" not in told
    assert "weights_only" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("text", TEXTS)
def test_another_text_is_refused(tmp_path: Path, checkpoint: Path, text: str) -> None:
    path = checkpoint / "multirate.json"
    path.write_bytes(TEXTS[text])
    with pytest.raises(ValueError, match="is damaged") as error:
        resumed(checkpoint, tmp_path)
    require_named(error, path)


CHANGED: dict[str, dict[str, Any]] = {
    "text": {"skipped_steps": "1"},
    "negative": {"skipped_steps": -1},
    "fraction": {"skipped_steps": 0.5},
    "whole fraction": {"skipped_steps": 1.0},
    "huge": {"skipped_steps": 10**30},
    "flag": {"skipped_steps": True},
    "none": {"skipped_steps": None},
    "NaN": {"skipped_steps": float("nan")},
    "more than steps": {"skipped_steps": STEP + 1},
    "configuration": {"config": CONFIG.to_dict() | {"turns_seed": 2}},
    "no configuration": {"config": []},
    "unknown": {"more": 1},
    "other format": {"format": 9},
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_value_is_refused(checkpoint: Path, change: str) -> None:
    path = checkpoint / "multirate.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CHANGED[change]))
    with pytest.raises(ValueError, match="is damaged") as error:
        read_saved(path)
    require_named(error, path)


@pytest.mark.parametrize("field", ["format", "step", "skipped_steps", "config", "beside", "tensors", "checksum"])
def test_a_missing_field_is_refused(checkpoint: Path, field: str) -> None:
    path = checkpoint / "multirate.json"
    values = json.loads(path.read_text())
    del values[field]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"lacks {field}") as error:
        read_saved(path)
    require_named(error, path)


def test_skipped_steps_are_no_more_than_steps(checkpoint: Path) -> None:
    rewrite(checkpoint / "multirate.json", dict, skipped_steps=STEP)
    with pytest.raises(ValueError, match=r"skipped_steps must be an integer from 0 to 3, got 4"):
        read_saved(rewritten(checkpoint, skipped_steps=STEP + 1))
    with pytest.raises(ValueError, match=r"skipped_steps must be an integer .*, got -1"):
        read_saved(rewritten(checkpoint, skipped_steps=-1))


def rewritten(checkpoint: Path, **settings: Any) -> Path:
    """Files that are whole and say something else."""
    path = checkpoint / "multirate.json"
    given = {"step": STEP, "skipped_steps": 0, "config": CONFIG.to_dict(), "state": {}} | settings
    write_saved(path, **given)
    return path


class Foreign:
    """Not a class that a file of tensors may hold."""


@pytest.mark.parametrize("kind", ["tensors", "pickle", "class", "other state"])
def test_foreign_tensors_are_refused(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    path = checkpoint / "multirate.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Foreign()))
    else:
        torch.save({"tensors": {"a": torch.ones(2)}, "class": Foreign()}.get(kind, {"level": {}}), path)
    with pytest.raises(ValueError, match="is damaged") as error:
        resumed(checkpoint, tmp_path)
    require_named(error, path)


def test_a_class_in_a_file_of_our_own_is_refused_without_advice(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_saved(rewritten(checkpoint, state=Foreign()))
    require_named(error, checkpoint / "multirate.pt")


@pytest.mark.parametrize("missing", ["json", "pt"])
def test_half_of_the_files_is_refused(tmp_path: Path, checkpoint: Path, missing: str) -> None:
    (checkpoint / f"multirate.{missing}").unlink()
    with pytest.raises(ValueError, match=rf"no multirate\.{missing}") as error:
        resumed(checkpoint, tmp_path)
    require_named(error, checkpoint / f"multirate.{'pt' if missing == 'json' else 'json'}")


def outcome(path: Path) -> Any:
    """What is read, or the error."""
    try:
        return read_saved(path)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("stem", ["multirate", "averaged_copies"])
@pytest.mark.parametrize("suffix", ["json", "pt"])
def test_any_damage_is_found_or_changes_nothing(checkpoint: Path, stem: str, suffix: str) -> None:
    path = checkpoint / f"{stem}.{suffix}"
    whole, kept = path.read_bytes(), read_saved(checkpoint / f"{stem}.json")
    assert kept is not None
    refused = 0
    for name, change in mutations(len(whole), 24):
        path.write_bytes(change(whole))
        found = outcome(checkpoint / f"{stem}.json")
        if isinstance(found, str):
            assert repr(str(path)) in found, name
            refused += 1
        else:
            assert_same(vars(found), vars(kept), name)
    assert refused >= 40


def broken_states() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]:
    def displaced(value: Any) -> Callable[[dict[str, Any]], Any]:
        def change(state: dict[str, Any]) -> Any:
            name, tensor = next(iter(state["displacement"].items()))
            return {**state, "displacement": {**state["displacement"], name: value(tensor)}}

        return change

    def levelled(value: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda state: {**state, "level": dict.fromkeys(state["level"], value)}

    yield "none", lambda state: None
    yield "list", lambda state: [state]
    yield "empty", lambda state: {}
    yield "entry none", lambda state: {**state, "displacement": None}
    yield "no level", lambda state: {"displacement": state["displacement"]}
    yield "unknown entry", lambda state: {**state, "more": {}}
    yield "foreign name", lambda state: {**state, "level": {"decoder.weight": 1}}
    yield "number for a name", lambda state: {**state, "level": {1: 1}}
    yield "displacement none", displaced(lambda tensor: None)
    yield "displacement list", displaced(lambda tensor: [0.0])
    yield "NaN", displaced(lambda tensor: tensor * float("nan"))
    yield "infinite", displaced(lambda tensor: tensor + float("inf"))
    yield "shape", displaced(lambda tensor: tensor[:1])
    yield "integers", displaced(lambda tensor: tensor.long())
    yield "complex", displaced(lambda tensor: tensor.to(torch.complex64))
    yield "sparse", displaced(lambda tensor: tensor.to_sparse())
    yield "no values", displaced(lambda tensor: tensor.to("meta"))
    for value in (-40, 12, 1.5, float("nan"), True, None, "7", torch.tensor(7)):
        yield f"level {value!r}", levelled(value)


BROKEN = dict(broken_states())


@pytest.mark.parametrize("change", BROKEN)
def test_a_broken_state_is_refused_before_anything_is_taken_over(change: str) -> None:
    model = network()
    optimizer = RMSprop(model.parameters(), lr=0.01)
    with Multirate(MultirateConfig.two_rate("5", PERIOD, turns="fixed", idle="drift")).attach(
        model, optimizer
    ) as multirate:
        for step in range(2):
            multirate.begin_step(step)
            inputs, labels = batch(step)
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        state = multirate.state_dict()
        assert state["displacement"]
        assert state["level"]
        with pytest.raises(ValueError, match=r"state|displacement|level|drift"):
            multirate.load_state_dict(BROKEN[change](state))
        assert_same(multirate.state_dict(), state)


def test_a_broken_state_is_said_with_the_name_of_its_file(tmp_path: Path, checkpoint: Path) -> None:
    rewrite(checkpoint / "multirate.json", lambda state: {**state, "level": {"classifier.weight": -40}})
    with pytest.raises(ValueError, match="-40") as error:
        resumed(checkpoint, tmp_path)
    require_named(error, checkpoint / "multirate.pt")


def _first(copies: list[dict[str, Any]], value: Callable[[Any], Any]) -> list[dict[str, Any]]:
    name, tensor = next(iter(copies[0].items()))
    return [{**copies[0], name: value(tensor)}, *copies[1:]]


COPIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda state: None,
    "empty": lambda state: {},
    "value none": lambda state: {**state, "values": _first(state["values"], lambda tensor: None)},
    "NaN": lambda state: {**state, "values": _first(state["values"], lambda tensor: tensor * float("nan"))},
    "shape": lambda state: {**state, "values": _first(state["values"], lambda tensor: tensor[:1])},
    "integers": lambda state: {**state, "values": _first(state["values"], lambda tensor: tensor.long())},
    "fewer": lambda state: {**state, "values": []},
    "no states": lambda state: {**state, "states": []},
    "states none": lambda state: {**state, "states": [None]},
    "foreign state": lambda state: {**state, "states": [{"decoder.weight": {}}]},
    "state none": lambda state: {**state, "states": _first(state["states"], lambda entries: None)},
    "state entries": lambda state: {**state, "states": _first(state["states"], lambda entries: {"a": 1})},
    "state shape": lambda state: {
        **state,
        "states": _first(state["states"], lambda entries: {key: torch.ones(1, 1, 1) for key in entries}),
    },
}


@pytest.mark.parametrize("change", COPIES)
def test_broken_copies_are_refused_before_anything_is_taken_over(change: str) -> None:
    model = network()
    copies = AveragedCopies(CopiesConfig((1, 2), turns="fixed")).attach(
        model, SGD(model.parameters(), lr=0.1, momentum=0.9)
    )
    for step in range(3):
        copies.begin_step(step)
        inputs, labels = batch(step)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        assert copies._optimizer is not None
        copies._optimizer.step()
        copies._optimizer.zero_grad()
    state = copies.state_dict()
    before = {key: value.clone() for key, value in state["values"][0].items()}
    with pytest.raises(ValueError, match=r"state|copies|copy"):
        copies.load_state_dict(COPIES[change](state))
    assert_same(copies.state_dict()["values"][0], before)
    copies.detach()


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Any) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_old_and_new_halves_do_not_go_together(tmp_path: Path, checkpoint: Path) -> None:
    kept = (checkpoint / "multirate.json").read_bytes()
    rewrite(checkpoint / "multirate.json", lambda state: {**state, "displacement": {}})
    (checkpoint / "multirate.json").write_bytes(kept)  # as if it had been killed between both
    with pytest.raises(ValueError, match="written together") as error:
        resumed(checkpoint, tmp_path)
    require_named(error, checkpoint / "multirate.pt")


@pytest.mark.parametrize("only_model", [False, True])
def test_files_of_an_earlier_run_are_told_of(
    tmp_path: Path, checkpoint: Path, warnings_of: Any, only_model: bool
) -> None:
    """The folder has a checkpoint of multirate training, over which standard training writes one of its own."""
    folder = checkpoint.parent
    later = trainer_for(folder, None, optim="rmsprop", learning_rate=0.02, save_only_model=only_model, **SAVING)
    later.train()
    stale = trainer_for(tmp_path / "stale", CONFIG, optim="rmsprop", max_steps=STEP + 2)
    train = stale.train
    stale.train = lambda: train(str(checkpoint))
    told = warnings_of(stale)
    assert "multirate.json and multirate.pt of another run" in told
    (checkpoint / "multirate.json").unlink()
    (checkpoint / "multirate.pt").unlink()
    clean = resumed(checkpoint, tmp_path / "clean")
    assert_same(weights(stale), weights(clean))


def test_files_of_another_step_are_told_of(tmp_path: Path, checkpoint: Path, warnings_of: Any) -> None:
    path = checkpoint / "trainer_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"global_step": STEP - 1}))
    trainer = trainer_for(tmp_path, CONFIG, optim="rmsprop", max_steps=STEP + 2)
    train = trainer.train
    trainer.train = lambda: train(str(checkpoint))
    assert "they are of step 3, but the checkpoint is of step 2" in warnings_of(trainer)


def test_a_checkpoint_that_was_copied_is_not_stale(tmp_path: Path, checkpoint: Path, warnings_of: Any) -> None:
    for path in checkpoint.iterdir():
        path.touch()
    (checkpoint / "optimizer.pt").rename(checkpoint / "elsewhere.pt")  # as a script does that saves space
    (checkpoint / "elsewhere.pt").unlink()
    trainer = trainer_for(tmp_path, CONFIG, optim="rmsprop", max_steps=STEP + 2)
    train = trainer.train
    trainer.train = lambda: train(str(checkpoint))
    assert warnings_of(trainer) == ""


def test_standard_training_leaves_the_files_of_trainer_and_is_resumed_by_any(tmp_path: Path) -> None:
    names = []
    for name, config in (("off", MultirateConfig.off()), ("standard", None)):
        trainer_for(tmp_path / name, config, optim="rmsprop", **SAVING).train()
        names.append(sorted(path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*")))
    assert names[0] == names[1]
    checkpoint = tmp_path / "off" / f"checkpoint-{STEP}"
    ends = [weights(resumed(checkpoint, tmp_path / "more", config)) for config in (MultirateConfig.off(), None)]
    assert_same(*ends)
    resumed(checkpoint, tmp_path / "multirate")


def test_a_cut_file_is_damaged(checkpoint: Path) -> None:
    damage(checkpoint / "multirate.pt", lambda data: data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged") as error:
        read_saved(checkpoint / "multirate.json")
    require_named(error, checkpoint / "multirate.pt")


CUT: dict[str, Callable[[Path], Any]] = {
    "before the state of Trainer": lambda path: path.unlink(),
    "in the state of Trainer": lambda path: path.write_text(path.read_text()[:99]),
    "in the weights": lambda path: (path.unlink(), (path.parent / "model.safetensors").write_bytes(b"cut")),
}


@pytest.mark.parametrize("cut", CUT)
def test_a_run_that_ended_while_it_saved_names_the_last_whole_checkpoint(tmp_path: Path, cut: str) -> None:
    saving = {**SAVING, "save_steps": 1, "max_steps": STEP}
    whole = trainer_for(tmp_path, CONFIG, **saving)
    whole.train()
    CUT[cut](tmp_path / f"checkpoint-{STEP}" / "trainer_state.json")
    for checkpoint in (True, str(tmp_path / f"checkpoint-{STEP}")):
        with pytest.raises(ValueError, match=r"checkpoint-3.* is incomplete: .* last complete one, .*checkpoint-2'"):
            trainer_for(tmp_path, CONFIG, **saving).train(resume_from_checkpoint=checkpoint)
    again = trainer_for(tmp_path, CONFIG, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(weights(again), weights(whole))
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="there is no complete checkpoint"):
        trainer_for(tmp_path, CONFIG, **saving).train(resume_from_checkpoint=True)
