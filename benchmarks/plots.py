"""Figures: every figure of the benchmarks is drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Curves:
    """Accuracy against seconds of one method, or against steps, by seed.

    Attributes:
        times: Seconds of each evaluation, the mean over seeds; or steps.
        values: Accuracies in percent of each evaluation, one for each seed.
        ours: Whether it is multirate training.
    """

    times: Sequence[float]
    values: Sequence[Sequence[float]]
    ours: bool = False


def accuracy_by_time(
    baseline: Curves,
    methods: Mapping[str, Curves],
    shortened: Sequence[tuple[float, float]],
    title: str,
    path: Path,
    along: str = "process seconds of training, one thread",
) -> None:
    """Write a figure: a line for the mean of each method, and a band for the range of its seeds.

    Args:
        baseline: Standard training of all steps.
        methods: All other methods, by name.
        shortened: Seconds and percent at the end of baseline runs of several lengths.
        title: Title of the figure.
        path: PNG file to write.
        along: Label of the horizontal axis.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(10, 5.5), layout="constrained")
    styles = _styles(methods, plt)
    others = [name for name in methods if not methods[name].ours]
    for name in ["baseline", *others, *(name for name in methods if methods[name].ours)]:
        curves = methods.get(name, baseline)
        colour, line = styles.get(name, ("black", "-"))
        axes.plot(curves.times, [fmean(v) for v in curves.values], line, color=colour, label=name, linewidth=1.3)
        axes.fill_between(
            curves.times, [min(v) for v in curves.values], [max(v) for v in curves.values], color=colour, alpha=0.06
        )
    if shortened:
        axes.plot(*zip(*shortened, strict=True), "ks--", label="baseline, shortened", linewidth=2.2)
    _finish(axes, along, title, path)


def accuracy_at_budgets(baselines: Mapping[str, Curves], others: Mapping[str, Curves], title: str, path: Path) -> None:
    """Write a figure: a point for each budget of each contender, and a band for the range of its seeds.

    Args:
        baselines: Standard training, by name of the contender.
        others: All other contenders, by name.
        title: Title of the figure.
        path: PNG file to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(figsize=(10, 5.5), layout="constrained")
    greys = plt.get_cmap("gray")
    styles = {name: (greys(0.6 * i / max(1, len(baselines))), "--") for i, name in enumerate(baselines)}
    styles |= _styles(others, plt)
    for name, curves in {**baselines, **others}.items():
        colour, line = styles[name]
        means = [fmean(values) for values in curves.values]
        low, high = ([bound(values) for values in curves.values] for bound in (min, max))
        axes.plot(curves.times, means, line, marker="o", markersize=3, color=colour, label=name, linewidth=1.3)
        axes.fill_between(curves.times, low, high, color=colour, alpha=0.06)
    _finish(axes, "reference seconds of training, one thread", title, path)


def _finish(axes: Any, seconds: str, title: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    axes.set(xlabel=seconds, ylabel="test accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    # Without the version of matplotlib in the file, the same results give the same bytes for longer.
    axes.figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(axes.figure)


@dataclass(frozen=True)
class Panel:
    """What was measured against the period, and bounds of it.

    Attributes:
        title: Title of the panel.
        periods: Periods of the slow part.
        means: Measured means.
        errors: Their standard errors.
        lines: Values of each bound, by name.
    """

    title: str
    periods: Sequence[int]
    means: Sequence[float]
    errors: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def bounds_by_period(panels: Sequence[Panel], path: Path) -> None:
    """Write a figure: measured points, and a line for each bound; the last place has the legend."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    columns = (len(panels) + 2) // 2
    figure, grid = plt.subplots(2, columns, figsize=(3.2 * columns, 6), layout="constrained", sharex=True)
    styles = dict(zip(panels[0].lines, (("tab:red", "--"), ("tab:blue", "-"), ("tab:blue", ":")), strict=True))
    for axes, panel in zip(grid.flat, panels, strict=False):
        axes.errorbar(panel.periods, panel.means, panel.errors, fmt="ko", markersize=4, label="measured")
        for name, values in panel.lines.items():
            colour, line = styles[name]
            axes.plot(panel.periods, values, line, color=colour, label=name)
        axes.set(xscale="log", yscale="log", title=panel.title)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    grid.flat[-1].legend(*grid.flat[0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("period k of the slow part")
    figure.supylabel("mean squared norm of the gradient")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _styles(methods: Mapping[str, Curves], plt: Any) -> dict[str, tuple[Any, str]]:
    """Colour and line of each method: cold and solid for multirate training, warm and dotted for others."""
    ours = [name for name in methods if methods[name].ours]
    others = [name for name in methods if not methods[name].ours]
    cold, warm = plt.get_cmap("winter"), plt.get_cmap("autumn")
    styles = {name: (cold(i / max(1, len(ours) - 1)), "-") for i, name in enumerate(ours)}
    return styles | {name: (warm(i / max(1, len(others))), ":") for i, name in enumerate(others)}
