"""The pictures of a report."""

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

from hf_multirate.config.text import one_line, shortened
from hf_multirate.reporting.comparison import is_metric
from hf_multirate.reporting.record_check import FROZEN
from hf_multirate.reporting.run_record import RunRecord


RUN, BASELINE = "#d9541e", "#3f83d1"
"""Colours that can be told apart on white and on black, and without red and green."""

SHADES = ("#d9541e", "#e89b3c", "#8f7fc4", "#3f83d1", "#3aa39b", "#9a9a9a")
INK = "#818283"
"""Stands for the colour of text, until a page or an image has one."""

DRAWN = 1e100
"""Numbers beyond this, either way, are left out of a picture."""

TALLEST, TITLE = 200.0, 80
"""Inches of a picture, and characters of its title."""

Runs = dict[str, RunRecord]
"""Label -> record; the run first."""


def charts(runs: Runs) -> dict[str, tuple[str, Figure]]:
    """Name of the file -> what it shows, and the picture."""
    run = next(iter(runs.values()))
    metric = next((key for entry in run.logs for key in entry if is_metric(key) and key != "eval_loss"), "eval_loss")
    found = {
        "loss_by_time": ("Training loss against seconds", _curves(runs, "loss", "seconds")),
        "metric_by_time": (f"{metric} against seconds", _curves(runs, metric, "seconds")),
        "loss_by_step": ("Training loss against steps", _curves(runs, "loss", "step")),
        "metric_by_step": (f"{metric} against steps", _curves(runs, metric, "step")),
        "steps": ("Seconds of a step, by its kind", _steps(runs)),
        "partition": ("Blocks in the order of the forward pass, and steps between their gradients", _partition(run)),
        "loss_decrease": ("First-order decrease of the loss by the last update of a block", _loss_decrease(run)),
    }
    return {name: (title, picture) for name, (title, picture) in found.items() if picture is not None}


def _axes(x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    picture = Figure(figsize=(5.2, min(height, TALLEST)), layout="constrained")
    axes = picture.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(shortened(y))
    axes.spines[["top", "right"]].set_visible(False)
    return picture, axes


def _curves(runs: Runs, key: str, against: str) -> Figure | None:
    picture, axes = _axes("step" if against == "step" else "seconds since the first step", key)
    for (label, run), colour in zip(runs.items(), (RUN, BASELINE), strict=False):
        entries = [entry for entry in run.logs if "train_runtime" not in entry]
        points = [(entry[against], entry[key]) for entry in entries if _can_be_drawn(entry.get(key))]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=3, linewidth=1.6)
    if not axes.lines:
        return None
    axes.legend(frameon=False)
    return picture


def _can_be_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and abs(value) < DRAWN


def _legend(axes: Axes, labels: Sequence[str], **settings: Any) -> None:
    """A legend with ``labels``, set afterwards: matplotlib leaves out those that begin with an underscore."""
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
    picture, axes = _axes("seconds", "", 1.2 + 0.6 * len(kinds))
    colours = [RUN if name.startswith(next(iter(runs))) else BASELINE for name in kinds]
    boxes = axes.boxplot(
        list(kinds.values())[::-1], orientation="horizontal", showfliers=False, patch_artist=True, widths=0.5,
        medianprops={"color": INK}, boxprops={"linewidth": 0}, whiskerprops={"color": INK}, capprops={"color": INK},
    )  # fmt: skip
    for box, colour in zip(boxes["boxes"], colours[::-1], strict=True):
        box.set_facecolor(colour)
    axes.set_yticks(range(1, len(kinds) + 1), list(kinds)[::-1])
    axes.set_xlim(left=0)
    return picture


def _partition(run: RunRecord) -> Figure | None:
    periods = {group["name"]: group["period"] for group in run.groups}
    picture, axes = _axes("million parameters", "", 1.4 + 0.32 * len(run.blocks))
    shown: dict[str, str] = {}
    groups = [*periods, FROZEN]
    for row, block in enumerate(run.blocks.values()):
        left = 0.0
        for group, number in block["groups"].items():
            label = f"{group}: {_every(periods[group])}" if group in periods else "no gradient"
            colour = SHADES[groups.index(group) % len(SHADES)]
            axes.barh(row, number / 1e6, left=left, color=colour, height=0.7, label="_" if group in shown else "group")
            shown.setdefault(group, label)
            left += number / 1e6
    axes.set_yticks(range(len(run.blocks)), [shortened(block) for block in run.blocks])
    if shown:
        _legend(axes, list(shown.values()), loc="lower left", bbox_to_anchor=(0.0, 1.0))
    return picture


def _every(period: int) -> str:
    return "every step" if period == 1 else f"every {period} steps"


def _loss_decrease(run: RunRecord) -> Figure | None:
    picture, axes = _axes("step", "decrease of the loss")
    decreases = {block: [entry.get(f"multirate/loss_decrease/{block}") for entry in run.logs] for block in run.blocks}
    blocks = [block for block, values in decreases.items() if any(map(_can_be_drawn, values))]
    colours = mpl.colormaps["plasma"]
    for i, block in enumerate(blocks):
        key = f"multirate/loss_decrease/{block}"
        points = [(entry["step"], entry[key]) for entry in run.logs if _can_be_drawn(entry.get(key))]
        axes.plot(*zip(*points, strict=True), color=colours(0.3 + 0.6 * i / len(blocks)), label="block", linewidth=1.4)
    axes.axhline(0.0, color=INK, linewidth=0.6)
    if blocks:
        _legend(axes, blocks, fontsize=8, ncols=2)
    return picture if blocks else None


def _styled(ink: str) -> dict[str, Any]:
    """Settings of matplotlib for text and lines in one colour."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
    # A name with a dollar is no formula.
    literal = {"text.parse_math": False, "text.usetex": False}
    return dict.fromkeys(names, ink) | {"font.size": 11.0, "svg.fonttype": "none"} | literal


@contextmanager
def _drawn(ink: str) -> Iterator[None]:
    """A context in which pictures are made and saved; letters that the font does not have are boxes in them."""
    with mpl.rc_context(_styled(ink)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        # A picture with many blocks, or long names, may have no room for all of it.
        warnings.filterwarnings("ignore", r"constrained_layout not applied", UserWarning)
        yield


def svgs(runs: Runs) -> list[tuple[str, str]]:
    """Title of each picture, and the picture for a page."""
    with _drawn(INK):
        return [(title, _svg(picture, name, title)) for name, (title, picture) in charts(runs).items()]


def _svg(picture: Figure, name: str, title: str) -> str:
    """As wide as there is room, text in the colour of the page, and ids of its own."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        picture.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    # What stands between tags are names of the user's, which stay as they are.
    found = re.sub(r"<[^>]*>", lambda tag: _own_tag(tag[0], name), found)
    found = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", found, count=1)
    found = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", found, count=1)
    return found.replace("<svg ", f'<svg role="img" aria-label="{html.escape(one_line(title))}" ', 1)


def _own_tag(tag: str, name: str) -> str:
    """A tag in the colours and fonts of the page, with ids that begin with ``name``."""
    tag = tag.replace(INK, "currentColor")
    tag = re.sub(r"font(-family)?:([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font\1:\2sans-serif", tag)
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", tag)


def write_pngs(runs: Runs, folder: Path) -> None:
    """The pictures as files, dark on white."""
    with _drawn("#222222"):
        for name, (title, picture) in charts(runs).items():
            picture.suptitle(shortened(title, TITLE), fontsize=11)
            picture.savefig(folder / f"{name}.png", dpi=150, facecolor="white", metadata={"Software": None})
