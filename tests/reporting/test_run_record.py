"""A record never stops training, and one that is none is refused in one line."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_multirate import MultirateConfig, MultirateTrainer, MultirateTrainingArguments
from hf_multirate.cli import main
from hf_multirate.config.validation import LARGEST_INT
from hf_multirate.reporting import report
from hf_multirate.reporting.record_check import ARGUMENTS
from hf_multirate.reporting.run_record import FILE, RunRecord, checksum, environment_of, read_record
from tests.support.damage import NESTED, TEXTS, mutations
from tests.support.runs import CONFIG, DEFAULTS, example, recorded_pair, trainer_for


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_pair(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer_for(folder, CONFIG, max_steps=3, save_strategy="steps", save_steps=3).train()
    return folder / "checkpoint-3"


def require_one_line(folder: Path, run: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"record of a run|has format") as error:
        run()
    told = str(error.value)
    assert repr(str(folder / FILE)) in told
    assert "\n" not in told
    assert len(told) < 600


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_record_is_refused_in_one_line(runs: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_bytes(TEXTS[text])
    require_one_line(tmp_path, lambda: report(tmp_path))
    require_one_line(tmp_path, lambda: report(runs / "multirate", tmp_path))
    with pytest.raises(SystemExit, match=r"error: .* is not a record of a run"):
        main(["report", str(tmp_path)])


FREE = ("('config',) {", "('model',) 'text'")
"""Parts that may be so."""


def broken(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record with each part, and each part of a part, missing or of another kind."""

    def at(path: tuple[Any, ...], value: Any, *, missing: bool = False) -> dict[str, Any]:
        changed = copy.deepcopy(record)
        part: Any = changed
        for key in path[:-1]:
            part = part[key]
        if missing:
            del part[path[-1]]
        else:
            part[path[-1]] = value
        return changed

    first = next(iter(record["blocks"]))
    paths: list[tuple[Any, ...]] = [(key,) for key in record]
    paths += [("groups", 0), ("groups", 0, "patterns"), ("groups", 0, "period")]
    paths += [("data", "rows"), ("data", "checksums"), ("data", "checksums", 0), ("environment", "versions")]
    paths += [("steps", "seconds"), ("steps", "full"), ("steps", "seconds", 0), ("steps", "full", 0)]
    paths += [("logs", 0), ("logs", 0, "step"), ("logs", 0, "seconds"), ("logs", 0, "loss"), ("blocks", first)]
    paths += [("blocks", first, "parameters"), ("blocks", first, "groups")]
    paths += [("summary", key) for key in ("seconds", "seconds_aside", "steps", "full_steps", "speedup")]
    for path in paths:
        for value in ({"foreign": []}, "text", [[None]]):
            yield f"{path} {value!r}", at(path, value)
        if path[0] != "logs" and path[-1] not in (0, first):
            yield f"{path} missing", at(path, None, missing=True)
    yield "steps of different length", at(("steps", "full"), [1])
    yield "group of no name", at(("blocks", first, "groups"), {"nowhere": 3})
    yield "huge", at(("logs", 0, "loss"), 10**400)
    yield "unknown part", at(("plans",), [])


def test_parts_of_another_kind_are_refused_in_one_line(runs: Path, tmp_path: Path) -> None:
    record = json.loads((runs / "multirate" / FILE).read_text())
    refused = 0
    for name, changed in broken(record):
        (tmp_path / FILE).write_text(json.dumps(changed))
        if name.startswith(FREE):
            report(tmp_path)
        else:
            require_one_line(tmp_path, lambda: read_record(tmp_path))
            refused += 1
    assert refused > 100


def test_any_damage_is_refused_or_still_makes_a_report(runs: Path, tmp_path: Path) -> None:
    whole = (runs / "multirate" / FILE).read_bytes()
    for _, change in mutations(len(whole), 30):
        (tmp_path / FILE).write_bytes(change(whole))
        try:
            record = read_record(tmp_path)
        except ValueError:
            require_one_line(tmp_path, lambda: read_record(tmp_path))
        else:
            assert isinstance(record, RunRecord)


@pytest.mark.parametrize("text", [b"", b"null", b'{"format": 3}', NESTED, b"\xff"])
def test_a_run_is_resumed_beside_what_is_no_record(
    tmp_path: Path, checkpoint: Path, warnings_of: Any, text: bytes
) -> None:
    (tmp_path / FILE).write_bytes(text)
    trainer = trainer_for(tmp_path, CONFIG, max_steps=5)
    train = trainer.train
    trainer.train = lambda: train(str(checkpoint))
    assert warnings_of(trainer).count("the record of the resumed run cannot be read") == 1
    record = read_record(tmp_path)
    assert (record.start_step, record.steps["full"]) == (3, [0, 1])


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for records that cannot be made."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_MULTIRATE_RECORD", str(tmp_path / "file" / "folder"))
    return tmp_path / "file" / "folder"


def test_a_folder_that_cannot_be_written_is_warned_of_before_training(
    tmp_path: Path, nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Early(MultirateTrainer):
        def get_train_dataloader(self) -> Any:
            assert f"cannot be kept in {nowhere}" in caplog.text
            return super().get_train_dataloader()

    with caplog.at_level(logging.WARNING, "hf_multirate"):
        trainer = trainer_for(tmp_path / "out", CONFIG, kind=Early, save_strategy="steps", save_steps=2)
        assert trainer.train().global_step == 6
        trainer.create_model_card()
    assert caplog.text.count("cannot be kept in") == 1


def test_the_users_own_error_is_not_hidden(tmp_path: Path, nowhere: Path) -> None:
    class Failing(MultirateTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 2:
                raise ArithmeticError("enough")
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(ArithmeticError, match="enough") as error:
        trainer_for(tmp_path / "out", CONFIG, kind=Failing).train()
    assert error.value.__context__ is None


def test_a_folder_in_the_place_of_the_record_is_a_warning(tmp_path: Path, warnings_of: Any) -> None:
    (tmp_path / FILE).mkdir()
    assert "cannot be kept" in warnings_of(trainer_for(tmp_path, CONFIG))


def test_arguments_that_say_less_or_nothing_are_no_error(tmp_path: Path, warnings_of: Any) -> None:
    trainer = trainer_for(tmp_path, CONFIG)
    whole = trainer.args.to_dict()
    vars(trainer.args)["to_dict"] = lambda: {key: value for key, value in whole.items() if key != "seed"}
    assert warnings_of(trainer) == ""
    assert read_record(tmp_path).arguments == {key: whole.get(key) for key in ARGUMENTS} | {"seed": None}
    report(tmp_path)

    def fail() -> dict[str, Any]:
        raise RuntimeError("no dictionary")

    vars(trainer.args)["to_dict"] = fail
    assert warnings_of(trainer).count("RuntimeError: no dictionary") == 1


def test_a_disk_that_is_full_is_a_warning_and_leaves_the_old_record(
    tmp_path: Path, warnings_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer_for(tmp_path, CONFIG, max_steps=2).train()
    before = (tmp_path / FILE).read_text()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert "No space left on device" in warnings_of(trainer_for(tmp_path, CONFIG, max_steps=3))
    assert (tmp_path / FILE).read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_batch_without_a_checksum_is_no_error(
    tmp_path: Path, warnings_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batches: Any) -> int:
        raise RuntimeError("unknown kind of batch")

    monkeypatch.setattr("hf_multirate.trainer.run_metrics.checksum", fail)
    trainer = trainer_for(tmp_path, CONFIG)
    assert warnings_of(trainer).count("unknown kind of batch") == 1
    assert trainer.state.global_step == 6


def test_views_of_other_numbers_have_checksums() -> None:
    numbers = torch.randn(3, dtype=torch.complex64)
    assert checksum([numbers.conj()]) == checksum([numbers.conj().resolve_conj()]) != checksum([numbers])
    negative = numbers.conj().imag
    assert negative.is_neg()
    assert checksum([negative]) == checksum([negative.resolve_neg()])
    assert checksum([torch.ones(2, device="meta")])


def test_numbers_that_json_lacks_are_valid_json(tmp_path: Path) -> None:
    _, rows = example("bert")
    trainer = trainer_for(tmp_path, CONFIG, eval_dataset=rows)
    trainer.compute_metrics = lambda prediction: {"lost": float("nan"), "high": float("inf"), "low": -float("inf")}
    trainer.train()
    trainer.evaluate()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    for name in (FILE, "report/report.json"):
        report(tmp_path)
        json.loads((tmp_path / name).read_text(), parse_constant=refuse)
    last = read_record(tmp_path).logs[-1]
    assert [str(last[f"eval_{name}"]) for name in ("lost", "high", "low")] == ["nan", "inf", "-inf"]


def test_an_attempt_that_ran_out_of_memory_leaves_nothing_in_the_record(tmp_path: Path) -> None:
    class Short(MultirateTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self._train_batch_size > 2 and self.state.global_step == 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return super().training_step(*args, **kwargs)

    _, rows = example("bert")
    settings: dict[str, Any] = {"max_steps": 5, "eval_on_start": True, "eval_dataset": rows}
    settings |= {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    trainer = trainer_for(tmp_path, CONFIG, kind=Short, **settings)
    trainer.train()
    record = read_record(tmp_path)
    assert [entry["step"] for entry in record.logs if "loss" in entry] == [1, 2, 3, 4, 5]
    assert [entry["step"] for entry in record.logs if "eval_loss" in entry] == [0]
    assert len(record.steps["full"]) == record.summary["steps"] == 5
    assert len(record.data["checksums"]) == 5
    seconds = [entry["seconds"] for entry in record.logs]
    assert seconds == sorted(seconds)


def test_standard_training_leaves_a_record_if_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = MultirateConfig.off()
    trainer = trainer_for(tmp_path / "none", off)
    trainer.train()
    trainer.create_model_card()
    standard = trainer_for(tmp_path / "standard", None)
    standard.train()
    standard.create_model_card()
    names = [sorted(os.listdir(tmp_path / name)) for name in ("none", "standard")]
    assert names[0] == names[1]
    assert "Multirate" not in (tmp_path / "none" / "README.md").read_text()
    trainer_for(tmp_path / "asked", off, multirate_record=True).train()
    assert read_record(tmp_path / "asked").standard
    trainer_for(tmp_path / "refused", CONFIG, multirate_record=False).train()
    assert not (tmp_path / "refused" / FILE).exists()
    monkeypatch.setenv("HF_MULTIRATE_RECORD", str(tmp_path / "variable"))
    trainer_for(tmp_path / "elsewhere", off).train()
    assert read_record(tmp_path / "variable").standard


@pytest.mark.parametrize("asked", [None, True, False])
def test_arguments_ask_for_a_record(tmp_path: Path, asked: bool | None) -> None:
    model, rows = example("bert")
    args = MultirateTrainingArguments(str(tmp_path), multirate="off", multirate_record=asked, **DEFAULTS)
    MultirateTrainer(model=model, args=args, train_dataset=rows).train()
    assert (tmp_path / FILE).is_file() == bool(asked)


def test_the_longest_period_is_in_a_record_that_can_be_read(tmp_path: Path) -> None:
    config = MultirateConfig.two_rate("head", LARGEST_INT, drift_steps=LARGEST_INT, idle="drift")
    trainer_for(tmp_path, config, max_steps=2, save_strategy="steps", save_steps=1).train()
    assert report(tmp_path).is_file()
    trainer_for(tmp_path, config, max_steps=3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(read_record(tmp_path).steps["seconds"]) == 3  # of both runs


def test_a_report_that_cannot_be_written_is_said_in_one_line(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the report cannot be written into .* --out"):
        report(runs / "multirate", out=tmp_path / "file" / "report")


def test_the_record_of_a_run_on_a_cpu_names_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: f"GPU of {device}")
    assert "GPU" not in environment_of()["device"]
    assert environment_of(torch.device("cuda", 1))["device"] == "GPU of cuda:1"
    assert environment_of(torch.device("mps"))["device"].startswith("mps, ")
