"""Train the same network in several ways with several seeds; print and save a table beside the paper's, and curves."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch


@dataclass
class Run:
    """What one training run came to."""

    method: str
    seed: int
    final: dict[str, float]
    """Figures of the table, by name."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Epoch and the figure that is plotted."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Table:
    """How to show the runs: what the paper has for each method, and for each figure."""

    title: str
    paper: Mapping[str, Mapping[str, str]]
    """Method -> figure -> what the paper says."""
    plotted: str
    digits: int = 2


def _timed(train: Callable[..., Run], method: str, seed: int, settings: Any) -> Run:
    torch.set_num_threads(1)
    start = time.perf_counter()
    run = train(method, seed, settings)
    run.seconds = round(time.perf_counter() - start, 1)
    print(f"{method}, seed {seed}: {run.final} in {run.seconds:.0f} s", flush=True)
    return run


def compare(
    train: Callable[..., Run], table: Table, settings: Any, seeds: Sequence[int], jobs: int, folder: Path
) -> list[Run]:
    """Run ``train(method, seed, settings)`` for all methods and seeds, one thread each, and report."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [(method, seed) for seed in seeds for method in table.paper]
    if jobs == 1:
        runs = [_timed(train, method, seed, settings) for method, seed in cases]
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = [pool.submit(_timed, train, method, seed, settings) for method, seed in cases]
            runs = [future.result() for future in waiting]
    record = {"settings": asdict(settings), "torch": torch.__version__, "runs": [asdict(run) for run in runs]}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = as_text(table, runs)
    (folder / "table.md").write_text(text, encoding="utf-8")
    plot(table, runs, folder / "curves.png")
    print(f"\n{text}\nwritten to {folder}: table.md, results.json, curves.png")
    return runs


def as_text(table: Table, runs: Sequence[Run]) -> str:
    """A Markdown table: mean, standard deviation and range over seeds, beside the paper's figure."""
    figures = list(runs[0].final)
    head = [f"{figure} | paper" for figure in figures]
    lines = [f"{table.title}, {len({run.seed for run in runs})} seeds: mean ± standard deviation (range)", ""]
    lines += ["| method | " + " | ".join(head) + " | seconds |", "|---" * (2 * len(figures) + 2) + "|"]
    for method, paper in table.paper.items():
        mine = [run for run in runs if run.method == method]
        cells = [method]
        for figure in figures:
            values = [run.final[figure] for run in mine]
            cells += [spread(values, table.digits), paper.get(figure, "-")]
        lines.append("| " + " | ".join([*cells, f"{mean(run.seconds for run in mine):.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, standard deviation and range."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    low, high = min(values), max(values)
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def plot(table: Table, runs: Sequence[Run], path: Path) -> None:
    """Mean curve of each method, with the range over seeds as a band."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in table.paper:
        curves = [run.curve for run in runs if run.method == method]
        epochs = [epoch for epoch, _ in curves[0]]
        columns = [[value for _, value in points] for points in zip(*curves, strict=True)]
        (line,) = axes.plot(epochs, [mean(column) for column in columns], label=method)
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2)
    axes.set(xlabel="epoch", ylabel=table.plotted, title=table.title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
