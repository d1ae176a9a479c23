"""Charts of a report."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_multirate.config.rate_group import NEVER
from hf_multirate.config.text import one_line, shortened
from hf_multirate.reporting.comparison import is_metric
from hf_multirate.reporting.record_check import FROZEN
from hf_multirate.reporting.run_record import RunRecord


RUN_COLOR, BASELINE_COLOR = "#d9541e", "#3f83d1"
"""Colors with enough contrast on white and on black, distinguishable with red-green color blindness."""

GROUP_COLORS = ("#d9541e", "#e89b3c", "#8f7fc4", "#3f83d1", "#3aa39b", "#9a9a9a")
INK = "#818283"
"""Placeholder for the color of text, replaced by the color of the page or image."""

LARGEST_DRAWN = 1e100
"""Values with a larger magnitude are left out of charts."""

MAX_HEIGHT, TITLE_LENGTH = 200.0, 80
"""Maximum height of a chart in inches, and maximum number of characters of its title."""

Runs = dict[str, RunRecord]
"""Records by label; the first one is the run, a second one the baseline."""


def charts(runs: Runs) -> dict[str, tuple[str, Figure]]:
    """Charts by file name: name -> (title, figure)."""
    run = next(iter(runs.values()))
    metric = next((key for entry in run.logs for key in entry if is_metric(key) and key != "eval_loss"), "eval_loss")
    figures = {
        "loss_by_time": ("Training loss over time", _curves(runs, "loss", "seconds")),
        "metric_by_time": (f"{metric} over time", _curves(runs, metric, "seconds")),
        "loss_by_step": ("Training loss over steps", _curves(runs, "loss", "step")),
        "metric_by_step": (f"{metric} over steps", _curves(runs, metric, "step")),
        "steps": ("Seconds of full and fast steps", _steps(runs)),
        "partition": ("Rate groups and periods by block, in the order of the forward pass", _partition(run)),
        "loss_decrease": ("First-order decrease of the loss per step, by block", _loss_decrease(run)),
    }
    return {name: (title, figure) for name, (title, figure) in figures.items() if figure is not None}


def _axes(x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, min(height, MAX_HEIGHT)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(shortened(y))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(runs: Runs, key: str, against: str) -> Figure | None:
    figure, axes = _axes("step" if against == "step" else "seconds since the first step", key)
    for (label, run), color in zip(runs.items(), (RUN_COLOR, BASELINE_COLOR), strict=False):
        entries = [entry for entry in run.logs if "train_runtime" not in entry]
        points = [(entry[against], entry[key]) for entry in entries if _can_be_drawn(entry.get(key))]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="o", markersize=3, linewidth=1.6)
    if not axes.lines:
        return None
    axes.legend(frameon=False)
    return figure


def _can_be_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < LARGEST_DRAWN


def _legend(axes: Axes, labels: Sequence[str], **settings: Any) -> None:
    """Add a legend with ``labels``, set afterwards because matplotlib ignores labels that start with an underscore."""
    legend = axes.legend(frameon=False, **settings)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(shortened(label))


def _steps(runs: Runs) -> Figure | None:
    kinds: dict[str, list[float]] = {}
    for label, run in runs.items():
        for kind, full in (("full steps", 1), ("fast steps", 0)):
            pairs = zip(run.steps["seconds"], run.steps["full"], strict=True)
            kinds[f"{label},\n{kind}"] = [seconds for seconds, is_full in pairs if is_full == full]
    kinds = {name: seconds for name, seconds in kinds.items() if seconds}
    if not kinds:
        return None
    figure, axes = _axes("seconds", "", 1.2 + 0.6 * len(kinds))
    colors = [RUN_COLOR if name.startswith(next(iter(runs))) else BASELINE_COLOR for name in kinds]
    boxes = axes.boxplot(
        list(kinds.values())[::-1], orientation="horizontal", showfliers=False, patch_artist=True, widths=0.5,
        medianprops={"color": INK}, boxprops={"linewidth": 0}, whiskerprops={"color": INK}, capprops={"color": INK},
    )  # fmt: skip
    for box, color in zip(boxes["boxes"], colors[::-1], strict=True):
        box.set_facecolor(color)
    axes.set_yticks(range(1, len(kinds) + 1), list(kinds)[::-1])
    axes.set_xlim(left=0)
    return figure


def _partition(run: RunRecord) -> Figure | None:
    periods = {group["name"]: group["period"] for group in run.groups}
    figure, axes = _axes("million parameters", "", 1.4 + 0.32 * len(run.blocks))
    labels: dict[str, str] = {}
    groups = [*periods, FROZEN]
    for row, block in enumerate(run.blocks.values()):
        left = 0.0
        for group, number in block["groups"].items():
            label = f"{group}: {_every(periods[group])}" if group in periods else "no gradient"
            color = GROUP_COLORS[groups.index(group) % len(GROUP_COLORS)]
            marker = "_" if group in labels else "group"  # one entry per group in the legend
            axes.barh(row, number / 1e6, left=left, color=color, height=0.7, label=marker)
            labels.setdefault(group, label)
            left += number / 1e6
    axes.set_yticks(range(len(run.blocks)), [shortened(block) for block in run.blocks])
    if labels:
        _legend(axes, list(labels.values()), loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return figure


def _every(period: int | str) -> str:
    if period == NEVER:
        return "never"
    return "every step" if period == 1 else f"every {period} steps"


def _loss_decrease(run: RunRecord) -> Figure | None:
    figure, axes = _axes("step", "decrease of the loss")
    decreases = {block: [entry.get(f"multirate/loss_decrease/{block}") for entry in run.logs] for block in run.blocks}
    blocks = [block for block, values in decreases.items() if any(map(_can_be_drawn, values))]
    colors = mpl.colormaps["plasma"]
    for i, block in enumerate(blocks):
        key = f"multirate/loss_decrease/{block}"
        points = [(entry["step"], entry[key]) for entry in run.logs if _can_be_drawn(entry.get(key))]
        axes.plot(*zip(*points, strict=True), color=colors(0.3 + 0.6 * i / len(blocks)), label="block", linewidth=1.4)
    axes.axhline(0.0, color=INK, linewidth=0.6)
    if blocks:
        _legend(axes, blocks, fontsize=8, ncols=2)
    return figure if blocks else None


def _styled(ink: str) -> dict[str, Any]:
    """Settings of matplotlib for text and lines in the color ``ink``."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    # User-given names with a dollar sign are not formulas.
    literal = {"text.parse_math": False, "text.usetex": False}
    return dict.fromkeys(names, ink) | {"font.size": 11.0, "svg.fonttype": "none"} | literal


@contextmanager
def _drawn(ink: str) -> Iterator[None]:
    """Context manager for drawing and saving charts. Characters that the font lacks are drawn as boxes."""
    with mpl.rc_context(_styled(ink)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        # Charts with many blocks or long names may not fit into the maximum size.
        warnings.filterwarnings("ignore", r"constrained_layout not applied", UserWarning)
        yield


def svgs(runs: Runs) -> list[tuple[str, str]]:
    """Titles and SVG texts of all charts, for embedding in a page."""
    with _drawn(INK):
        return [(title, _svg(figure, name, title)) for name, (title, figure) in charts(runs).items()]


def _svg(figure: Figure, name: str, title: str) -> str:
    """SVG text of a chart, as wide as the page, with the text color of the page and unique ids."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Only tags are changed: text between tags may be user-given names.
    svg = re.sub(r"<[^>]*>", lambda tag: _styled_tag(tag[0], name), svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(one_line(title))}" ', 1)


def _styled_tag(tag: str, name: str) -> str:
    """An SVG tag with the colors and fonts of the page, and ids that begin with ``name``."""
    tag = tag.replace(INK, "currentColor")
    tag = re.sub(r"font(-family)?:([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1:\2sans-serif", tag)
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", tag)


def write_pngs(runs: Runs, folder: Path) -> None:
    """Write all charts into ``folder`` as PNG files, dark on white."""
    with _drawn("#222222"):
        for name, (title, figure) in charts(runs).items():
            figure.suptitle(shortened(title, TITLE_LENGTH), fontsize=11)
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", metadata={"Software": None})
