"""Tables and pictures of docs/benchmarks.md, docs/auto.md and README.md from the files that run.py keeps.

python benchmarks/report.py            # rewrite what stands between <!-- bench NAME --> and <!-- end -->
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from answer import NOT_RUN, answer, headline
from curves import (
    RESULTS,
    ROOT,
    Runs,
    ahead,
    at,
    finals,
    grids,
    in_time,
    is_plain,
    metric,
    plain_by_time,
    seconds,
    time_to,
)


PAGES = [ROOT / name for name in ("docs/benchmarks.md", "docs/auto.md", "README.md")]
BUDGETS = (0.2, 0.4, 0.6, 0.8, 1.0)
MARGIN = 1.03
"""Factor on the time of automatic training, for a fixed setting to count as no slower."""

CLOSE = 0.99
"""Share of the accuracy of plain training that counts as reaching it."""


def _spread(values: Sequence[float]) -> str:
    return f"{100 * fmean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def _gap(runs: Runs, name: str) -> tuple[str, str]:
    """Plain training in the time of a contender, and how far that is ahead of it."""
    found = None if is_plain(name) else ahead(runs, name)
    if found is None:
        return "", ""
    return f"{100 * (metric(runs[name].values()) - found[0]):.1f}", f"{100 * found[0]:+.1f} ± {100 * found[1]:.1f}"


def _close(runs: Runs, name: str) -> str:
    """Share of plain training's time after which all seeds of ``name`` are close to where it ends, on average."""
    level, whole = CLOSE * metric(runs["plain"].values()), seconds(runs["plain"].values())
    times = [time_to(run, level) for run in runs[name].values()]
    reached = [time for time in times if time is not None]
    return f"{fmean(reached) / whole:.2f}" if len(reached) == len(times) else f"{len(reached)} of {len(times)} seeds"


def outcome(runs: Runs, rates: dict[str, dict[float, float]]) -> str:
    """One row per contender, the fastest first."""
    rows = [
        "| contender | rate | accuracy, % | seconds | speed-up | plain in that time, % | ahead by, points "
        "| time to 99 % of plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    whole = seconds(runs["plain"].values())
    for name in sorted(runs, key=lambda name: seconds(runs[name].values())):
        some = list(runs[name].values())
        rate, took = some[0]["spec"]["rate"], seconds(some)
        edge = "\\*" if rate in (min(rates[name]), max(rates[name])) else ""
        accuracy = _spread([run["test_metric"] for run in some])
        plain, gap = _gap(runs, name)
        rows.append(
            f"| {name} | {rate:.2g}{edge} | {accuracy} | {took:.0f} | {whole / took:.2f} | {plain} | {gap} "
            f"| {_close(runs, name)} |"
        )
    return "\n".join(rows)


def automatic(runs: Runs, rates: dict[str, dict[float, float]]) -> str:
    """One row per budget of automatic training, beside the best fixed setting that takes no longer.

    The best is chosen by accuracy on test rows, which is in its favour.
    """
    del rates
    rows = [
        "| budget | speed-up | accuracy, % | plain in that time, % | ahead by, points | best fixed multirate setting "
        "in that time | its accuracy, % |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = seconds(runs["plain"].values())
    fixed = [name for name in runs if name.startswith("multirate")]
    for name in (name for name in runs if name.startswith("auto")):
        some = list(runs[name].values())
        took, (plain, gap) = seconds(some), _gap(runs, name)
        fit = [other for other in fixed if seconds(runs[other].values()) <= MARGIN * took]
        best = max(fit, key=lambda other: metric(runs[other].values()), default=None)
        theirs = "" if best is None else _spread([run["test_metric"] for run in runs[best].values()])
        rows.append(
            f"| {name.removeprefix('auto ')} | {whole / took:.2f} | {_spread([run['test_metric'] for run in some])} "
            f"| {plain} | {gap} | {best or ''} | {theirs} |"
        )
    return "\n".join(rows)


def budgets(runs: Runs, rates: dict[str, dict[float, float]]) -> str:
    """Accuracy at equal time, for five budgets."""
    del rates
    whole = seconds(runs["plain"].values())
    rows = ["| contender | " + " | ".join(f"{share:g}" for share in BUDGETS) + " |", "|---" * (len(BUDGETS) + 1) + "|"]
    points = plain_by_time(runs, list(runs["plain"]))
    cells = [in_time(points, share * whole) for share in BUDGETS]
    rows.append(_row("plain, schedule of that length", cells))
    for name in (name for name in runs if name == "plain" or not is_plain(name)):
        cells = []
        for share in BUDGETS:
            values = [at(run, share * whole) for run in runs[name].values()]
            known = [value for value in values if value is not None]
            cells.append(fmean(known) if len(known) == len(values) else None)
        rows.append(_row(name, cells))
    return "\n".join(rows)


def _row(name: str, cells: Sequence[float | None]) -> str:
    return f"| {name} | " + " | ".join("" if cell is None else f"{100 * cell:.1f}" for cell in cells) + " |"


def picture(runs: Runs, title: str, path: Path) -> None:
    """Accuracy against seconds: the mean of each contender, and the range of its seeds as a band."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 5.5), layout="constrained")
    ours = [name for name in runs if name.startswith(("multirate", "auto"))]
    others = [name for name in runs if name not in ours and not is_plain(name)]
    blues, warm = plt.get_cmap("winter"), plt.get_cmap("autumn")
    styles = {name: (blues(i / max(1, len(ours) - 1)), "-") for i, name in enumerate(ours)}
    styles |= {name: (warm(i / max(1, len(others))), ":") for i, name in enumerate(others)}
    for name in ["plain", *others, *ours]:
        curves = [run["curve"] for run in runs[name].values()]
        times = [fmean(point["process_seconds"] for point in column) for column in zip(*curves, strict=True)]
        values = [[100 * point["metric"] for point in column] for column in zip(*curves, strict=True)]
        colour, line = styles.get(name, ("black", "-"))
        axes.plot(times, [fmean(v) for v in values], line, color=colour, label=name, linewidth=1.3)
        axes.fill_between(times, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.06)
    points = plain_by_time(runs, list(runs["plain"]))
    axes.plot(*zip(*[(t, 100 * v) for t, v in points], strict=True), "ks--", label="plain, shortened", linewidth=2.2)
    axes.set(xlabel="process seconds of training, one thread", ylabel="test accuracy, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
    plt.close(figure)


TABLES = {"outcome": outcome, "budgets": budgets, "auto": automatic}


def filled(
    text: str, found: dict[tuple[str, str], Runs], rates: dict[tuple[str, str, str], dict[float, float]]
) -> str:
    """``text`` with every table in it as the results have it; a table without results says so."""

    def table(match: re.Match[str]) -> str:
        what, task, length = match[2].split()
        if task == "all":
            return f"{match[1]}{headline(found) if what == 'headline' else answer(found, length)}\n{match[3]}"
        runs = found.get((task, length))
        if runs is None:
            return f"{match[1]}{NOT_RUN}\n{match[3]}"
        of_task = {name: grid for (*key, name), grid in rates.items() if key == [task, length]}
        return f"{match[1]}{TABLES[what](runs, of_task)}\n{match[3]}"

    return re.sub(r"(<!-- bench ([\w ]+) -->\n).*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> None:
    """Rewrite the pages and their pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pages", type=Path, nargs="+", default=PAGES)
    parser.add_argument("--dirty", action="store_true", help="also show results of files that were not committed")
    options = parser.parse_args(argv)
    found = finals(options.results, dirty=options.dirty)
    for page in options.pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), found, grids(options.results)), encoding="utf-8")
    images = options.pages[0].parent / "images"
    images.mkdir(exist_ok=True)
    for (task, length), runs in found.items():
        picture(runs, f"{task}, {length}", images / f"bench_{task}_{length}.png")


if __name__ == "__main__":
    main()
