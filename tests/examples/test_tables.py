"""The examples that train from scratch: their quick runs, the table they write, and the data they make."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.launch import core_first


EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mlxtend", "matplotlib")),
    reason="the extra 'examples' is not installed",
)
METHODS = {
    "train_mnist_subgroups.py": ["standard", "drop every step", "multirate"],
    "train_lm_subgroups.py": ["SGD", "SGD + dropout", "multirate"],
    "train_patches.py": ["h = 0.004", "h = 0.1", "multirate"],
}


@pytest.mark.parametrize("script", core_first(["train_lm_subgroups.py"], list(METHODS)))
def test_quick_run_writes_table_record_and_plot(script: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), "--quick", "--jobs", "2", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table in done.stdout
    assert [line.split(" | ")[0][2:] for line in table.splitlines()[3:]][1:] == METHODS[script]
    record = json.loads((tmp_path / "results.json").read_text())
    ran = [(run["method"], run["seed"]) for run in record["runs"]]
    assert ran == [(method, seed) for seed in (0, 1) for method in METHODS[script]]
    finals = [tuple(run["final"].values()) for run in record["runs"]]
    assert all(math.isfinite(value) for values in finals for value in values)
    assert len(set(finals)) > 2, "the figures are those of each run"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.usefixtures("_examples")
def test_patches_are_the_recipe() -> None:
    from patches import Patches

    patches = Patches()
    images, labels = torch.randn(1000, 3, 32, 32), torch.arange(1000) % 10
    batch = patches.training_batch(images, labels, torch.arange(1000))
    same = (batch == images).flatten(1).all(1)
    assert torch.equal(same, torch.arange(1000) % 5 == 0)
    outside = batch.clone()
    outside[:, :, 12:19, 12:19] = 0
    bare = ~same & (outside == 0).flatten(1).all(1)
    assert 0.15 < float(bare.sum() / (~same).sum()) < 0.25
    # Plus or minus the pattern of the class around the common one.
    inside = patches.add(images, labels, torch.ones(1000))[:, :, 12:19, 12:19]
    for label in range(10):
        kinds = {tuple(patch.flatten()[:5].tolist()) for patch in inside[labels == label]}
        assert len(kinds) == 2
        middle = sum(torch.tensor(kind) for kind in kinds) / 2
        assert torch.allclose(middle, patches._common.flatten()[:5], atol=1e-6)


@pytest.mark.usefixtures("_examples")
def test_words_and_blocks(tmp_path: Path) -> None:
    from corpora import as_blocks, read_files, words_of

    (tmp_path / "a.txt").write_text("The cat, the hat.\n\nIt's THE end!\n" * 10)
    words = words_of(read_files([tmp_path / "a.txt"]))
    assert words[:10] == ["the", "cat", ",", "the", "hat", ".", "it's", "the", "end", "!"]
    train, validation, test = as_blocks(words, vocabulary=3, length=5, test=["hat", "the"] * 3)
    assert train.shape == (18, 5)
    assert validation.shape == (2, 5)
    assert sorted(set(train.flatten().tolist())) == [0, 1, 2]
    assert train[0].tolist() == [1, 2, 0, 1, 0]
    assert test.tolist() == [[0, 1, 0, 1, 0]]


@pytest.mark.usefixtures("_examples")
def test_table_has_mean_deviation_and_range() -> None:
    from comparison import Run, Table, as_text

    runs = [Run("a", seed, {"x": value}, seconds=2.0) for seed, value in enumerate((1.0, 2.0, 6.0))]
    text = as_text(Table("T", {"a": {"x": "7"}}, "x", digits=1), runs)
    assert text.splitlines()[0] == "T, 3 seeds: mean ± standard deviation (range)"
    assert text.splitlines()[-1] == "| a | 3.0 ± 2.6 (1.0 to 6.0) | 7 | 2 |"


KEPT = {
    "mnist_subgroups": ("train_mnist_subgroups", "random_subsets.md"),
    "lm_subgroups": ("train_lm_subgroups", "random_subsets.md"),
    "patches": ("train_patches", "averaged_copies.md"),
}


@pytest.mark.usefixtures("_examples")
@pytest.mark.parametrize("name", KEPT)
def test_tables_in_docs_are_those_of_the_kept_runs(name: str) -> None:
    from comparison import Run, as_text

    script, page = KEPT[name]
    table = importlib.import_module(script).TABLE
    record = json.loads((EXAMPLES / "results" / f"{name}.json").read_text(encoding="utf-8"))
    rows = as_text(table, [Run(**run) for run in record["runs"]]).split("\n\n", 1)[1]
    assert rows in (EXAMPLES.parent / "docs" / "methods" / page).read_text(encoding="utf-8")


def test_missing_images_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "train_patches.py"), "--quick", "--data_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert f"no file cifar10_train*.parquet in {tmp_path}" in done.stderr
