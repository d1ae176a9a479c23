"""The reference pages list what the code has: fields, keys, switches and messages."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hf_multirate
from hf_multirate import (
    CopiesConfig,
    MultirateConfig,
    MultirateTrainingArguments,
    RandomSubset,
    RateGroup,
)
from hf_multirate.cli import _parser
from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.controller.step_timer import StepTimer
from hf_multirate.reporting.run_record import FILE, RunRecord
from hf_multirate.trainer.log_values import DEFAULT_KEYS
from tests.docs.test_docs import ROOT
from tests.support.runs import CONFIG, FIVE, recorded_pair, trainer_for


REFERENCE = ROOT / "docs" / "reference"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """The text of a page from the heading ``title`` to the next one of the same level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page(name), re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


def rows(text: str, header: str) -> dict[str, list[str]]:
    """First cell without its backquotes -> the other cells, of the table whose first column is ``header``."""
    table = text.split(f"\n| {header} |")[1].partition("\n\n")[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_public_name_is_on_the_page() -> None:
    named = re.findall(r"^::: hf_multirate\.(\w+)$", page("api"), re.MULTILINE)
    assert sorted(named) == sorted(hf_multirate.__all__)


@pytest.mark.parametrize(
    "kind", [MultirateConfig, RateGroup, RandomSubset, AutoPeriods, CopiesConfig], ids=lambda kind: kind.__name__
)
def test_fields_with_their_defaults(kind: type) -> None:
    table = rows(section("config", kind.__name__), "field")
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    assert list(table) == list(fields)
    for name, default in fields.items():
        shown = "required" if default is dataclasses.MISSING else f"`{default!r}`"
        if name != "groups":  # a long text of its own
            assert table[name][0] == shown, name


@pytest.mark.parametrize("kind", [MultirateConfig, RateGroup])
def test_which_fields_the_command_line_has(kind: type) -> None:
    table = rows(section("config", kind.__name__), "field")
    arguments = MultirateTrainingArguments.__dataclass_fields__
    has = {name: f"multirate_{name}" in arguments for name in table}
    assert {name: cells[-1] == "yes" for name, cells in table.items()} == has


def test_default_groups() -> None:
    assert "`MultirateConfig()` | `ladder([1, 2, 4])`" in section("config", "MultirateConfig")
    assert MultirateConfig() == MultirateConfig.ladder([1, 2, 4])


def test_training_arguments() -> None:
    table = rows(section("config", "Training arguments"), "field")
    fields = {
        field.name: f"`{field.default!r}`"
        for field in dataclasses.fields(MultirateTrainingArguments)
        if field.name.startswith("multirate")
    }
    assert {name: cells[0] for name, cells in table.items()} == fields


def test_constructors() -> None:
    listed = set(re.findall(r"^\| `MultirateConfig\.(\w+)\(", section("config", "MultirateConfig"), re.MULTILINE))
    made = {
        name
        for name, value in vars(MultirateConfig).items()
        if isinstance(value, classmethod) and not name.startswith("from_")
    }
    assert listed == made


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_pair(tmp_path_factory.mktemp("records"))


def test_log_keys(tmp_path: Path) -> None:
    table = rows(section("log_keys", "Logs"), "key")
    config = MultirateConfig.stages([(1.0, dataclasses.replace(CONFIG, lr_decay=0.9))])
    trainer = trainer_for(tmp_path, config, max_steps=24, multirate_log="all")
    trainer.train()
    keys = {key for entry in trainer.state.log_history for key in entry if key.startswith("multirate/")}
    logged = {re.sub(r"(/\w*learning_rate)/[^/]+$", r"\1/GROUP", key) for key in keys}
    logged = {
        key if key.endswith("/GROUP") or key.count("/") < 2 else re.sub(r"/[^/]+$", "/BLOCK", key) for key in logged
    }
    expected = set(table) if FIVE else {key for key in table if "grad_norm" not in key}
    assert logged == expected
    brief = {key for key, (word, _) in table.items() if word == "yes"}
    assert brief == DEFAULT_KEYS | {"multirate/phase"}
    differ = {key for key, (word, _) in table.items() if word == "if learning rates differ"}
    assert differ == {"multirate/learning_rate/GROUP", "multirate/lowest_learning_rate/GROUP"}
    assert {cells[0] for cells in table.values()} == {"yes", "no", "if learning rates differ", "with stages"}


def test_head_start_keys(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.off(head_start=2, head_start_steps=2))
    trainer.train()
    keys = {key for key in trainer.state.log_history[0] if key.startswith("multirate/")}
    listed = rows(section("log_keys", "Head start"), "head start key")
    assert {f"multirate/head_start/{key}" for key in listed} == keys


def test_activation_cache_keys(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", "never", activation_cache="memory"))
    trainer.train()
    keys = {key for key in trainer.state.log_history[0] if key.startswith("multirate/activation_cache/")}
    listed = rows(section("log_keys", "Activation cache"), "cache key")
    assert {f"multirate/activation_cache/{key}" for key in listed} == keys


def test_timing_keys() -> None:
    assert list(rows(section("log_keys", "Timing"), "key")) == list(StepTimer().summary())


def test_record_keys(records: Path) -> None:
    text = section("log_keys", "multirate_record.json")
    fields = {field.name for field in dataclasses.fields(RunRecord)}
    assert set(rows(text, "key")) == fields - {"plans"}
    record = json.loads((records / "multirate" / FILE).read_text(encoding="utf-8"))
    more = set(rows(text, "summary key"))
    assert more & set(StepTimer().summary()) == set()
    assert set(record["summary"]) == more | set(StepTimer().summary())


def test_report_keys(records: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    from hf_multirate.reporting import report

    figures = json.loads(report(records / "multirate", records / "baseline").with_name("report.json").read_text())
    text = section("log_keys", "report.json")
    listed = re.findall(r"`(\w+)`", "\n".join(line.split(" | ")[0] for line in text.splitlines() if "| `" in line))
    assert sorted(listed) == sorted(figures)


def commands() -> dict[str, argparse.ArgumentParser]:
    found = next(action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_command_is_on_the_page() -> None:
    assert re.findall(r"^## (\w+)$", page("command_line"), re.MULTILINE) == list(commands())


def shown_default(action: argparse.Action) -> str:
    if action.required and action.nargs != argparse.REMAINDER:
        return "required"
    value: Any = " ".join(action.default) if isinstance(action.default, list) else action.default
    return f"`{value}`"


@pytest.mark.parametrize("command", ["plan", "report", "compare"])
def test_switches_with_their_defaults(command: str) -> None:
    table = rows(section("command_line", command), "argument")
    actions = [action for action in commands()[command]._actions if action.dest != "help"]
    expected = {(action.option_strings or [action.dest])[-1]: shown_default(action) for action in actions}
    assert {name: cells[0] for name, cells in table.items()} == expected
    for action in actions:
        if action.choices:
            meaning = table[action.option_strings[-1]][1]
            assert re.findall(r"`([\w-]+)`", meaning) == list(action.choices)


def texts() -> Iterator[str]:
    """The texts in the source, with a mark for each value in them."""
    for path in (ROOT / "hf_multirate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\N{BULLET}" for part in node.values]
                yield "".join(str(part) for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


MESSAGES = re.findall(r"^\| `(.+?)` \| (.+?) \|", page("errors"), re.MULTILINE)
KINDS = {"ValueError", "TypeError", "RuntimeError", "NotImplementedError", "ImportError"}


def test_messages_are_listed() -> None:
    assert len(MESSAGES) > 50
    for _, kind in MESSAGES:
        assert set(re.findall(r"`(\w+Error)`", kind)) <= KINDS
        assert "Error" in kind or "warning" in kind or kind == "error of the command"


def test_messages_are_in_the_source() -> None:
    source = list(texts())
    missing = []
    for message, _ in MESSAGES:
        pattern = ".*".join(re.escape(part.strip()) for part in message.split("..."))
        if not any(re.search(pattern, text, re.DOTALL) for text in source):
            missing.append(message)
    assert missing == []
    assert not any("this text is in no message" in text for text in source)
