"""What `plan` and the command line do not take: one line that names it, and nothing of the process has changed."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_multirate import MultirateConfig, plan
from hf_multirate.cli import main
from hf_multirate.config.schedule import Schedule
from hf_multirate.planning.inputs import first_rows
from hf_multirate.planning.measure import kinds_of


ROWS = 6


class Returning(nn.Module):
    """Three layers and a head, and whatever ``what`` makes of the loss."""

    def __init__(self, what: Any = lambda loss, scores: {"loss": loss}) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)
        self.what = what

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        for block in self.blocks:
            x = block(x).relu()
        scores = self.head(x)
        return self.what(nn.functional.cross_entropy(scores, labels), scores)


class Table(nn.Module):
    """No product to count."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Embedding(4, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.blocks(labels) * self.head).sum()}


def rows(count: int = ROWS) -> dict[str, Tensor]:
    return {"x": torch.randn(count, 8), "labels": torch.zeros(count, dtype=torch.long)}


def frozen() -> nn.Module:
    return Returning().requires_grad_(False)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Returning()


def lazy() -> nn.Module:
    model = Returning()
    model.head = nn.LazyLinear(2)
    return model


def inferring() -> nn.Module:
    with torch.inference_mode():
        return Returning()


CONFIG = MultirateConfig.two_rate("^head", 3, idle="drift")
COPRIME = [1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31]
MODELS: dict[str, tuple[Any, str]] = {
    "no model": (lambda: "model", "model of plan"),
    "a class": (lambda: Returning, "model of plan"),
    "no parameters": (nn.Identity, "Identity has no parameters"),
    "frozen": (frozen, "no trainable parameter"),
    "meta": (on_meta, "'blocks.0.weight' has no values"),
    "lazy": (lazy, "'head.weight' is uninitialized"),
    "inference": (inferring, "created in inference mode"),
    "no loss": (lambda: Returning(lambda loss, scores: {"logits": scores}), "returns no loss"),
    "loss None": (lambda: Returning(lambda loss, scores: {"loss": None}), "returns no loss"),
    "a tensor": (lambda: Returning(lambda loss, scores: loss), "returns no loss"),
    "nothing": (lambda: Returning(lambda loss, scores: None), "returns no loss"),
    "empty tuple": (lambda: Returning(lambda loss, scores: ()), "returns no loss"),
    "integer loss": (lambda: Returning(lambda loss, scores: {"loss": scores.argmax()}), "returns no loss"),
    "float": (lambda: Returning(lambda loss, scores: {"loss": loss.item()}), "returns no loss"),
    "many losses": (lambda: Returning(lambda loss, scores: {"loss": scores}), r"loss of shape \(2, 2\)"),
    "detached": (lambda: Returning(lambda loss, scores: {"loss": loss.detach()}), "has no gradient"),
    "raises": (lambda: Returning(lambda loss, scores: scores["loss"]), "forward pass of Returning failed"),
    "no product": (Table, "no matrix product"),
}
BATCHES: dict[str, tuple[Any, str]] = {
    "None": (None, "a batch must be a mapping"),
    "list": ([torch.randn(4, 8)], "a batch must be a mapping"),
    "tensor": (torch.randn(4, 8), "a batch must be a mapping"),
    "empty": ({}, "a batch needs a tensor with rows"),
    "scalars": ({"x": torch.tensor(1.0)}, "a batch needs a tensor with rows"),
    "texts": ({"x": ["a", "b"]}, "a batch needs a tensor with rows"),
    "no rows": (rows(0), "a batch needs a tensor with rows"),
    "numbers for names": ({1: torch.randn(4, 8)}, "name of an input must be a string, got 1"),
    "other names": ({"y": torch.randn(4, 8)}, "forward pass of Returning failed"),
    "other shapes": ({**rows(), "x": torch.randn(ROWS, 5)}, "forward pass of Returning failed"),
}
CONFIGS: dict[str, tuple[Any, str]] = {
    "None": (None, "configs must be a mapping"),
    "list": ([CONFIG], "configs must be a mapping"),
    "a config": (CONFIG, "configs must be a mapping"),
    "dictionary": ({"it": CONFIG.to_dict()}, "the configuration 'it' must be a MultirateConfig"),
    "label": ({5: CONFIG}, "label of a configuration must be a string, got 5"),
    "kinds": (
        {"it": MultirateConfig([*CONFIG.groups[:1], *MultirateConfig.ladder(COPRIME, idle="drift").groups])},
        "kinds of steps",
    ),
}
ARGUMENTS = {
    **{f"model: {name}": (make, rows(), {"it": CONFIG}, words) for name, (make, words) in MODELS.items()},
    **{f"batch: {name}": (Returning, batch, {"it": CONFIG}, words) for name, (batch, words) in BATCHES.items()},
    **{f"configs: {name}": (Returning, rows(), configs, words) for name, (configs, words) in CONFIGS.items()},
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_cannot_be_planned_with(case: str) -> None:
    make, batch, configs, words = ARGUMENTS[case]
    if case == "configs: kinds":  # more parts than a small model has blocks
        make = deep
    with pytest.raises((TypeError, ValueError), match=words) as error:
        plan(make(), batch, configs)
    assert issubclass(error.type, (TypeError, ValueError))


def deep() -> nn.Module:
    model = Returning()
    model.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(len(COPRIME)))
    return model


def test_measure_is_a_switch() -> None:
    with pytest.raises(TypeError, match="measure must be True or False, got 5"):
        plan(Returning(), rows(), {"it": CONFIG}, measure=5)  # type: ignore[arg-type]


def test_a_loss_may_come_first_in_a_tuple_and_gradients_may_be_off() -> None:
    (wanted,) = plan(Returning(), rows(), {"it": CONFIG})
    with torch.no_grad():
        (found,) = plan(Returning(lambda loss, scores: (loss, scores)), rows(), {"it": CONFIG})
    assert found.speedup == wanted.speedup


@pytest.mark.parametrize("periods", [(1, 3), (1, 2, 4, 8), (1, 2, 3), (4, 1, 4, 6), (1, 1)])
def test_kinds_of_steps_are_those_of_the_cycle(periods: tuple[int, ...]) -> None:
    schedule = Schedule(periods)
    assert kinds_of(schedule) == Counter(schedule.live(i) for i in range(schedule.cycle))
    assert next(iter(kinds_of(schedule))) == tuple(range(len(periods)))
    for live in kinds_of(schedule):
        assert schedule.live(schedule.example(live)) == live


def test_a_plan_does_not_take_longer_for_longer_periods() -> None:
    (found,) = plan(Returning(), rows(), {"it": MultirateConfig.two_rate("^head", 10**15, idle="drift")})
    assert [step.per_cycle for step in found.steps] == [1, 10**15 - 1]
    assert found.speedup == pytest.approx(found.bound)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_few_rows_stand_for_all(count: int) -> None:
    batch = {
        "scale": torch.tensor(3.0),
        **rows(count),
        "grid": torch.zeros(99),
        "more": [torch.arange(count)],
        "on": True,
    }
    part, times = first_rows(batch)
    assert len(part["x"]) * times == count
    assert len(part["x"]) == len(part["labels"]) == len(part["more"][0]) == min(2, count)
    assert (part["scale"], len(part["grid"]), part["on"]) == (3.0, 99, True)
    assert part["x"].untyped_storage().nbytes() == part["x"].nbytes


# ---- the command line


MODULE = """
import os, sys
import torch
from tests.planning.test_inputs import Returning, frozen, on_meta, rows
def good(): return Returning(), rows()
def prints(): print("not JSON"); return Returning(), rows()
def three(): return Returning(), rows(), 3
def one(): return (Returning(),)
def pair_in_a_list(): return [Returning(), rows()]
def nothing(): pass
def no_batch(): return Returning()
def batch_in_a_list(): return Returning(), [rows()["x"]]
def no_rows(): return Returning(), {"x": torch.tensor(1.0)}
def no_loss(): return Returning(lambda loss, scores: {"logits": scores}), rows()
def no_parameters(): return torch.nn.Identity(), rows()
def without_gradients(): return frozen(), rows()
def exits(): sys.exit(3)
def interrupted(): raise KeyboardInterrupt
def two_lines(): raise ValueError("first\\nsecond")
def model_exits(): return Returning(lambda loss, scores: sys.exit(3)), rows()
def moves(): os.chdir("/"); return Returning(), rows()
def clears(): sys.path.clear(); return Returning(), rows()
def rebinds(): sys.path = []; return Returning(), rows()
def turns_off(): torch.set_grad_enabled(False); return Returning(), rows()
number = 5
"""
FUNCTIONS = {
    "three": "returned a tuple of 3: return a model, or a model and a batch",
    "one": "returned a tuple of 1",
    "pair_in_a_list": "returned list",
    "nothing": "returned NoneType",
    "no_batch": "return both a model and a batch",
    "batch_in_a_list": "a batch must be a mapping",
    "no_rows": "a batch needs a tensor with rows",
    "no_loss": "Returning returns no loss",
    "no_parameters": "Identity has no parameters",
    "without_gradients": "no trainable parameter",
    "on_meta": "no batch can be created",
    "exits": "could not be called (SystemExit: 3)",
    "interrupted": "could not be called (KeyboardInterrupt)",
    "two_lines": "could not be called (ValueError: first second)",
    "model_exits": "SystemExit(3)",
    "number": "could not be called (TypeError",
    "absent": "has no 'absent'",
    "": "has no ''",
}
OPTIONS = {
    "--batch=0": "--batch must be at least 1, got 0",
    "--batch=-1": "--batch must be at least 1, got -1",
    "--seq=0": "--seq must be at least 1, got 0",
    "--period=0": "--period must be at least 1, got 0",
    "--period=-1": "--period must be at least 1, got -1",
    f"--period={10**30}": "--period must be at most",
    "--speedup=0": "--speedup must be at least 1, got 0.0",
    "--speedup=-1": "--speedup must be at least 1, got -1.0",
    "--speedup=nan": "--speedup must be finite, got nan",
    "--speedup=inf": "--speedup must be finite, got inf",
    "--fast=": "has an empty pattern",
    "--fast=(": "is not a regular expression",
    "--fast=ladder:1,x": "a ladder must be a list of integers",
    "--fast=ladder:2,4": "no rate group has period 1",
    "--fast=nowhere": "matches no trainable parameter",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*words: str) -> str:
    before = (os.getcwd(), sys.path, list(sys.path), torch.is_grad_enabled())
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert (os.getcwd(), sys.path, list(sys.path), torch.is_grad_enabled()) == before
    text = stop.value.code
    assert isinstance(text, str)
    assert text.startswith("error: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_gives_nothing_to_plan_with(folder: Path, name: str) -> None:
    assert FUNCTIONS[name] in refused("plan", f"theirs:{name}", "--fast", "^head", "--json")


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_out_of_range(folder: Path, option: str) -> None:
    fast = [] if option.startswith("--fast") else ["--fast", "^head"]
    assert OPTIONS[option] in refused("plan", "theirs:good", *fast, option)


@pytest.mark.parametrize("name", ["no_such_module:f", ":f", "..up:f", "theirs.py:good", "", "no/such/folder"])
def test_a_name_that_is_no_model(folder: Path, name: str) -> None:
    assert repr(name) in refused("plan", name)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\0" * 9, bytes(range(256)), b"[" * 100_000, b'{"model_type": 5}',
                b'{"model_type": "bert", "architectures": 5}',
                b'{"model_type": "bert", "architectures": ["pipeline"]}',
                b'{"model_type": "bert", "architectures": ["BertModel"], "num_attention_heads": 0}'],
)  # fmt: skip
def test_a_folder_with_a_broken_configuration(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert str(folder) in refused("plan", str(folder), "--fast", "last:1")


@pytest.mark.parametrize("name", ["good", "prints", "moves", "clears", "rebinds", "turns_off"])
def test_code_of_the_user_changes_nothing(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (os.getcwd(), sys.path, list(sys.path), torch.is_grad_enabled())
    main(["plan", f"theirs:{name}", "--fast", "^head", "--period", "3", "--json"])
    assert (os.getcwd(), sys.path, list(sys.path), torch.is_grad_enabled()) == before
    assert json.loads(capsys.readouterr().out)[0]["label"] == "^head, period 3"


def test_patterns_are_text_and_no_markup(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "theirs:good", "--fast", "[/h]ead", "he[ad]d", "--period", "3", "--details"])
    printed = capsys.readouterr().out
    assert printed.count("[/h]ead") == printed.count("he[ad]d") >= 3


def test_paths_that_cannot_be_used(folder: Path) -> None:
    a_file = str(folder / "theirs.py")
    for words in (["report", a_file], ["report", str(folder)], ["report", "nowhere"]):
        assert "has no multirate_record.json" in refused(*words)
    for script in (str(folder), "nowhere.py", ""):
        assert f"there is no script {script!r}" in refused("compare", script)
    assert a_file in refused("compare", "--out", a_file, a_file)
