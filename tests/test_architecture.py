"""The layout: a folder imports from folders below it, folders form no circle, and the public names are these."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_multirate


PACKAGE = Path(hf_multirate.__file__).parent

FLOORS = (
    ("config",),
    ("reporting", "model"),
    ("optim", "distributed"),
    ("backward",),
    ("controller",),
    ("trainer", "planning"),
    ("cli", "averaged_copies"),
)
"""Folders from the lowest floor up. Folders on one floor do not know each other."""

LEVEL = {folder: level for level, folders in enumerate(FLOORS) for folder in folders}

PUBLIC = [
    "AveragedCopies",
    "AveragedCopiesMixin",
    "AveragedCopiesTrainer",
    "CopiesConfig",
    "HeadStartResult",
    "Multirate",
    "MultirateConfig",
    "MultirateMixin",
    "MultirateSeq2SeqTrainer",
    "MultirateSeq2SeqTrainingArguments",
    "MultirateTrainer",
    "MultirateTrainingArguments",
    "Plan",
    "RandomSubset",
    "RateGroup",
    "head_start",
    "multirate_parameter_groups",
    "plan",
]


def imported(source: str) -> Iterator[str]:
    """Modules of the package that ``source`` imports, at the top or within a function, also for types only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def upward(folder: str, source: str) -> list[str]:
    """Imports of ``source``, a file in ``folder``, that are not from this folder or from a lower floor."""
    found = []
    for module in imported(source):
        parts = module.split(".")
        if parts[0] != "hf_multirate" or (len(parts) > 1 and parts[1] == folder):
            continue
        if len(parts) == 1 or LEVEL.get(parts[1], len(FLOORS)) >= LEVEL[folder]:
            found.append(module)
    return found


def relative(source: str) -> bool:
    """Whether ``source`` has a relative import."""
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(source)))


FILES = sorted(PACKAGE.rglob("*.py"))


def test_each_folder_has_a_floor_and_the_root_has_public_names_only() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in FILES} == {*LEVEL, "__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_its_folder_and_from_lower_floors(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert not relative(source)
    if path.parent != PACKAGE:
        assert upward(path.relative_to(PACKAGE).parts[0], source) == []


@pytest.mark.parametrize(
    ("folder", "line", "found"),
    [
        ("optim", "from hf_multirate.controller.multirate import Multirate", 2),
        ("optim", "from hf_multirate.distributed.ddp import DDPSync", 2),
        ("config", "from hf_multirate import MultirateConfig", 2),
        ("config", "import hf_multirate.model.blocks", 1),
        ("trainer", "def f():\n    from hf_multirate import cli", 2),
        ("trainer", "from hf_multirate.optim.updater import ParameterUpdater", 0),
        ("model", "from hf_multirate.model.blocks import blocks_of", 0),
        ("model", "import torch", 0),
    ],
)
def test_an_import_upwards_is_found(folder: str, line: str, found: int) -> None:
    assert len(upward(folder, line)) == found


def test_public_names() -> None:
    assert sorted(hf_multirate.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(hf_multirate, name).__doc__
