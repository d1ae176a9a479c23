"""The experiments that train from scratch: data, sizes, methods, and the rule that chooses their settings.

The training itself is that of the scripts in ``examples``. A setting is chosen by trials with a seed of their own,
scored on rows that are neither trained nor tested on, in two rounds. The first chooses what all methods share, without
a run of multirate training. The second chooses the strength of each regulariser.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.accuracy import images
from benchmarks.machine import ROOT


Choice = Mapping[str, Any]
"""Settings of a script."""

Trials = Sequence[tuple[str, Choice, Mapping[str, float]]]
"""Method, choice and figures of each trial of the first round."""


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        name: Name in the table.
        trains: Name of the method in the script.
        fixed: Settings in which it differs from the others.
        grid: What the second round chooses from.
    """

    name: str
    trains: str
    fixed: Choice = field(default_factory=dict)
    grid: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A table.

    Attributes:
        name: Name in files and on the command line.
        title: Title of the figure.
        script: The script in ``examples``.
        settings: Settings of all runs.
        trial: Settings of the trials.
        methods: Rows of the table. The last is multirate training.
        shared: What the first round chooses from.
        first: Names of the methods of the first round.
        figures: Figures of a run that the table shows.
        scored: The figure of a trial by which a choice is made.
        least: Whether a low figure is a good one.
        widest: Whether the first round chooses the largest difference between its methods, and not the best of them.
        digits: Digits of the figures.
        needs: Files in ``--data-dir``, or at an absolute path.
    """

    name: str
    title: str
    script: str
    settings: Choice
    trial: Choice
    methods: tuple[Method, ...]
    shared: tuple[Choice, ...]
    first: tuple[str, ...]
    figures: tuple[str, ...]
    scored: str
    least: bool = False
    widest: bool = False
    digits: int = 2
    needs: tuple[str, ...] = ()

    def method(self, name: str) -> Method:
        """The method of this name."""
        return next(method for method in self.methods if method.name == name)

    def best(self, scores: Sequence[float]) -> int:
        """Place of the best score; the first of equal ones."""
        return scores.index(min(scores) if self.least else max(scores))

    def choose_shared(self, trials: Trials) -> Choice:
        """What all methods share, by the trials of the first round."""
        scores = []
        for choice in self.shared:
            of_choice = [figures[self.scored] for _, tried, figures in trials if tried == choice]
            scores.append(max(of_choice) - min(of_choice) if self.widest else of_choice[0])
        return self.shared[self.best(scores)]

    def paths(self, folder: Path | None, *, trial: bool) -> dict[str, str]:
        """Settings of the script that name files."""
        known = folder or Path()
        if self.script == "train_mnist_subgroups":
            return {"idx": images.FASHION}
        if self.script == "train_patches":
            return {"data_dir": str(known)}
        texts = ("text",) if trial else ("text", "test_text")
        return {name: str(known / file) for name, file in zip(texts, self.needs, strict=False)}


def script(name: str) -> ModuleType:
    """A script of ``examples``, whose folder is put on the path: scripts import their neighbours by short names."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _each(name: str, *values: float) -> tuple[Choice, ...]:
    return tuple({name: value} for value in values)


PERCEPTRON = Experiment(
    "perceptron", "Fashion-MNIST, perceptron with one hidden layer, SGD", "train_mnist_subgroups",
    {"epochs": 80, "hidden": 200, "batch_size": 100, "period": 3, "held_out": 10_000}, {"validate": True},
    (
        Method("standard", "standard"),
        Method("dropout", "standard", grid=_each("dropout", 0.2, 0.5)),
        Method("drop every step", "drop every step", grid=_each("fraction", 0.2, 0.5)),
        Method("multirate", "multirate", grid=_each("fraction", 0.2, 0.5)),
    ),
    _each("learning_rate", 0.05, 0.1, 0.2), ("standard",), ("test accuracy, %",), "test accuracy, %",
    needs=(images.FASHION,),
)  # fmt: skip

TEXT = Experiment(
    "text", "WikiText-2, small transformer, SGD", "train_lm_subgroups",
    {
        "tokenized": True, "epochs": 20, "vocabulary": 2000, "width": 64, "layers": 2, "length": 32, "batch_size": 16,
        "period": 5,
    },
    {},
    (
        Method("SGD", "SGD"),
        Method("SGD + dropout", "SGD + dropout", grid=_each("dropout", 0.1, 0.2)),
        Method("drop every step", "multirate", {"period": 1, "redraw": "step"}, _each("fraction", 0.15, 0.3)),
        Method("multirate", "multirate", grid=_each("fraction", 0.15, 0.3)),
    ),
    _each("learning_rate", 0.5, 1.0, 2.0), ("SGD",), ("best validation loss", "test loss"), "best validation loss",
    least=True, digits=3, needs=("wikitext2_valid.txt.xz", "wikitext2_test.txt.xz"),
)  # fmt: skip

PATCHES = Experiment(
    "patches", "CIFAR-10 with patches, WideResNet", "train_patches",
    {"images": 10_000, "scored": 1000, "epochs": 10, "depth": 10, "batch_size": 32}, {"validate": True},
    (
        Method("h = 0.004", "h = 0.004"),
        Method("h = 0.1", "h = 0.1"),
        Method("h = 0.1, then 0.004", "h = 0.1", {"lower_after": 0.5}),
        Method("multirate", "multirate"),
    ),
    _each("pattern", 0.2, 0.3, 0.5), ("h = 0.004", "h = 0.1"), ("clean", "augmented", "patch only"),
    "patch only", widest=True, digits=1, needs=("cifar10_train_0.parquet", "cifar10_test.parquet"),
)  # fmt: skip

EXPERIMENTS = {found.name: found for found in (PERCEPTRON, TEXT, PATCHES)}
