"""Training from scratch: the rules that choose settings, the path from data to results, and the page."""

from __future__ import annotations

import gzip
import io
import lzma
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.accuracy.results import ResultsFile
from benchmarks.reproduction import from_scratch, from_scratch_experiments, from_scratch_page
from benchmarks.reproduction.from_scratch_experiments import EXPERIMENTS, PATCHES, PERCEPTRON, TEXT, Choice, Experiment


pytest.importorskip("mlxtend", reason="the extra 'examples' is not installed")


def write_idx(folder: Path) -> None:
    """Pictures of noise with a bright stripe at the place of their label."""
    draws = np.random.default_rng(0)
    for part, count in (("train", 120), ("t10k", 40)):
        labels = draws.integers(10, size=count).astype(np.uint8)
        images = draws.integers(100, size=(count, 28, 28)).astype(np.uint8)
        images[np.arange(count), labels] = 255
        for kind, header, data in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + data.tobytes()))


def write_texts(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for name, count in (("valid", 1200), ("test", 300)):
        words = [f"w{min(n, 30)}" if n != 3 else "<unk>" for n in draws.geometric(0.2, count)]
        (folder / f"wikitext2_{name}.txt.xz").write_bytes(lzma.compress(" ".join(words).encode()))


def write_images(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for name, count in (("train_0", 96), ("test", 32)):
        cells = []
        for pixels in draws.integers(256, size=(count, 32, 32, 3)).astype(np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            cells.append({"bytes": file.getvalue()})
        pd.DataFrame({"img": cells, "label": draws.integers(10, size=count)}).to_parquet(
            folder / f"cifar10_{name}.parquet"
        )


def small(experiment: Experiment, **settings: Any) -> Experiment:
    needs = tuple(name for name in experiment.needs if not Path(name).is_absolute())
    shorter = {"settings": {**experiment.settings, **settings}, "shared": experiment.shared[:2], "needs": needs}
    return replace(experiment, **shorter)


SMALL: dict[str, tuple[Experiment, Callable[[Path], None]]] = {
    "perceptron": (small(PERCEPTRON, epochs=2, hidden=16, batch_size=20, held_out=30), write_idx),
    "text": (small(TEXT, epochs=2, vocabulary=20, width=8, layers=1, length=8, batch_size=8), write_texts),
    "patches": (small(PATCHES, images=64, scored=32, epochs=2, batch_size=32), write_images),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_table_from_data_to_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, write = SMALL[name]
    write(tmp_path)
    monkeypatch.setattr(from_scratch_experiments.images, "FASHION", str(tmp_path))
    monkeypatch.setitem(EXPERIMENTS, name, experiment)
    out = tmp_path / "out"
    common = ["--tables", name, "--jobs", "0", "--quiet", "--allow-dirty", "--data-dir", str(tmp_path)]
    command = [*common, "--out", str(out), "--seeds", "2"]
    from_scratch.main(command)

    runs = ResultsFile(out, name, "scratch").runs
    finals = [(run["seed"], run["method"]) for run in runs if run["role"] == "final"]
    assert finals == [(seed, method.name) for seed in (0, 1) for method in experiment.methods]
    trials = [run for run in runs if run["role"] == "trial"]
    second = sum(len(method.grid) for method in experiment.methods)
    assert len(trials) == 2 * len(experiment.first) + second
    assert all("test loss" not in run["figures"] for run in trials)
    assert all(set(run["figures"]) == set(experiment.figures) for run in runs if run["role"] == "final")
    assert len({tuple(run["figures"].values()) for run in runs}) > 3, "the methods differ"

    with monkeypatch.context() as patch:
        patch.setattr(from_scratch, "train", None)
        from_scratch.main(command)  # nothing is left to run
    assert ResultsFile(out, name, "scratch").runs == runs

    finals_read = from_scratch_page.read_finals(out, allow_dirty=True)
    text = from_scratch_page.tables(finals_read)[f"scratch {name}"]()
    assert [line.split(" | ")[0][2:] for line in text.splitlines()[2:6]] == [m.name for m in experiment.methods]
    from_scratch_page.draw(finals_read, tmp_path)
    assert (tmp_path / f"scratch_{name}.png").stat().st_size > 10_000


def test_all_methods_share_the_first_choice_and_each_has_its_own_second() -> None:
    def trials(figures: dict[float, float]) -> list[tuple[str, Choice, dict[str, float]]]:
        return [("SGD", {"learning_rate": rate}, {TEXT.scored: loss}) for rate, loss in figures.items()]

    assert TEXT.choose_shared(trials({0.5: 4.5, 1.0: 4.3, 2.0: 4.4})) == {"learning_rate": 1.0}
    tried = [(m, c, {"test accuracy, %": 80 + c["learning_rate"]}) for c in PERCEPTRON.shared for m in ("standard",)]
    assert PERCEPTRON.choose_shared(tried) == {"learning_rate": 0.2}


def test_the_pattern_is_that_at_which_the_step_sizes_differ_most() -> None:
    found = {0.2: (30.0, 25.0), 0.3: (90.0, 20.0), 0.5: (99.0, 85.0)}
    tried = [
        (method, {"pattern": size}, {"patch only": score})
        for size, scores in found.items()
        for method, score in zip(PATCHES.first, scores, strict=True)
    ]
    assert PATCHES.choose_shared(tried) == {"pattern": 0.3}


def test_a_choice_is_made_by_trials_only(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "perceptron", "scratch")

    def add(
        method: str, choice: Choice, score: float, role: str = "trial", seed: int = from_scratch.TRIAL_SEED
    ) -> None:
        shared = {"settings": from_scratch.settings_of(PERCEPTRON, method), "machine": MACHINE}
        run = {"method": method, "choice": choice, "seed": seed, "role": role}
        figures = {"test accuracy, %": score}
        file.append(
            {"task": "perceptron", "length": "scratch", **run, "figures": figures, "seconds": 3600.0, **shared}
        )

    for choice, score in zip(PERCEPTRON.shared, (80.0, 90.0, 85.0), strict=True):
        add("standard", choice, score)
    for method in PERCEPTRON.methods[1:]:
        for choice, score in zip(method.grid, (88.0, 91.0), strict=True):
            add(method.name, {"learning_rate": 0.1, **choice}, score)
    add("multirate", {"learning_rate": 0.1, "fraction": 0.2}, 99.0, "final", 7)
    options = Namespace(out=tmp_path, seeds=2)
    runs = from_scratch.Runs(PERCEPTRON, options)
    chosen = [runs.chosen(method.name) for method in PERCEPTRON.methods]
    assert chosen == [
        {"learning_rate": 0.1},
        {"learning_rate": 0.1, "dropout": 0.5},
        {"learning_rate": 0.1, "fraction": 0.5},
        {"learning_rate": 0.1, "fraction": 0.5},
    ]
    assert len(runs.missing(runs.finals())) == 8
    assert from_scratch.plan(runs, 2) == "perceptron: 17 runs, 10 are there; the rest takes about 7.00 core hours"


MACHINE = {
    "commit": "a" * 40, "dirty": False, "processor": "x", "cores": 2, "threads": 1, "versions": {"torch": "2.13"},
}  # fmt: skip


def test_the_section_has_means_ranges_and_paired_differences(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "text", "scratch")
    for method, losses in (("SGD", (4.5, 4.7)), ("multirate", (4.4, 4.5))):
        for seed, loss in enumerate(losses):
            shared = {"settings": from_scratch.settings_of(TEXT, method), "machine": MACHINE, "seconds": 60.0}
            run = {"method": method, "choice": {"learning_rate": 1.0}, "seed": seed, "role": "final", "curve": []}
            figures = {"best validation loss": loss, "test loss": loss + 0.2}
            file.append({"task": "text", "length": "scratch", **run, "figures": figures, **shared})
    found = from_scratch_page.read_finals(tmp_path)
    text = from_scratch_page.tables(found)["scratch text"]()
    row = (
        "| SGD | 4.600 ± 0.141 (4.500 to 4.700) | 4.800 ± 0.141 (4.700 to 4.900) | 4.856 | learning_rate 1 | 2 | 60 |"
    )
    assert row in text
    assert "| SGD | -0.150 (-0.785 to +0.485) | -0.150 (-0.785 to +0.485) |" in text
    one = {"text": {name: {0: runs[0]} for name, runs in found["text"].items()}}
    assert "| SGD | -0.100 | -0.100 |" in from_scratch_page.tables(one)["scratch text"]()
    assert from_scratch_page.tables(found)["scratch patches"]() == from_scratch_page.NOT_YET


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path, "perceptron", "scratch")
    settings = {"task": {"epochs": 1}, "method": {"trains": "standard"}}
    file.append(
        {"task": "perceptron", "length": "scratch", "method": "standard", "settings": settings, "machine": MACHINE}
    )
    runs = from_scratch.Runs(PERCEPTRON, Namespace(out=tmp_path, data_dir=None, quiet=True))
    with pytest.raises(from_scratch.InputError, match="another configuration"):
        runs.run_all(None)


def test_missing_data_are_named(tmp_path: Path) -> None:
    command = ["--tables", "text", "--jobs", "0", "--allow-dirty", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"there is no 'wikitext2_valid\.txt\.xz' in --data-dir"):
        from_scratch.main(command)
