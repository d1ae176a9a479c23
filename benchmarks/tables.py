"""Write the tables of results into the pages of docs, from the files that sweep.py keeps.

python benchmarks/tables.py            # rewrite what stands between <!-- table NAME --> and <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any


ROOT = Path(__file__).parent.parent
ORDER = (
    "plain",
    "default",
    "depth:0.33 train",
    "last:1",
    "last:1 train",
    "last:1 hold train",
    "head train",
    "head hold train",
)
PAGES = ("docs/results.md", "docs/method.md")
Results = dict[tuple[str, ...], dict[int, dict[str, Any]]]


def results(suite: str) -> Results:
    """Summaries of a suite: name without suite and seed -> seed -> summary."""
    found: Results = defaultdict(dict)
    for path in sorted((ROOT / "benchmarks" / "results").glob(f"{suite}_*.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        *name, seed = summary["run"].split()[1:]
        found[tuple(name)][int(seed)] = summary
    return found


def _points(runs: dict[int, dict[str, Any]]) -> str:
    """Accuracies in percent: the mean, and every seed."""
    values = [100 * runs[seed]["eval_accuracy"] for seed in sorted(runs)]
    return f"{fmean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def _gap(runs: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]]) -> str:
    """Mean difference to plain training over the seeds that both have, in points."""
    shared = sorted(set(runs) & set(plain))
    return f"{fmean(100 * (runs[seed]['eval_accuracy'] - plain[seed]['eval_accuracy']) for seed in shared):+.1f}"


def accuracy() -> str:
    """One row per setting."""
    found = results("accuracy")
    plain = found["plain",]
    rows = ["| setting | accuracy, % (by seed) | points against plain | training loss |", "|---|---|---|---|"]
    for name in (name for name in ORDER if tuple(name.split()) in found):
        runs = found[tuple(name.split())]
        loss = fmean(run["train_loss"] for run in runs.values())
        gap = "" if name == "plain" else _gap(runs, plain)
        rows.append(f"| {name} | {_points(runs)} | {gap} | {loss:.3f} |")
    return "\n".join(rows)


def stability() -> str:
    """One row per learning rate."""
    found = results("stability")
    rows = ["| learning rate | plain AdamW, % (by seed) | default, % (by seed) | points |", "|---|---|---|---|"]
    for rate in sorted({name[0] for name in found}, key=float):
        plain, ours = found[rate, "plain"], found[rate, "default"]
        rows.append(f"| {rate} | {_points(plain)} | {_points(ours)} | {_gap(ours, plain)} |")
    return "\n".join(rows)


TABLES = {"accuracy": accuracy, "stability": stability}


def filled(text: str) -> str:
    """``text`` with every table in it as the results of today have it."""
    pattern = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> None:
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
