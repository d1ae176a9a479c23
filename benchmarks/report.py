"""Write the tables and figures of the documentation from the results.

    python -m benchmarks report

- docs/results/TASK.md: one page for each task, from the results and from benchmarks/notes/TASK.md, which is written by
  hand. Figures go to docs/results/images.
- docs/results/reproduction.md: the experiments of the paper, from the results of `python -m benchmarks reproduce`.
- docs/results/equal_time.md: contenders at equal time, if there are results of `python -m benchmarks accuracy`.
- docs/results/gpu.md: the results of `python -m benchmarks gpu`, or how to get them.
- The pages in `FILLED`: what stands between ``<!-- bench NAME -->`` and ``<!-- end -->``, with one of the names in
  `tables_of` or in benchmarks/reproduction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.accuracy import outcome_tables as accuracy
from benchmarks.accuracy.chosen_runs import Grids, all_grids, chosen_runs
from benchmarks.accuracy.machine_correction import Runs
from benchmarks.budgets import report as budgets
from benchmarks.budgets import summary_tables
from benchmarks.commands import parser_of
from benchmarks.gpu import page as gpu
from benchmarks.jsonl import read_lines
from benchmarks.machine import ROOT
from benchmarks.reproduction import bounds_page, from_scratch_page
from benchmarks.reproduction import page as reproduction
from benchmarks.speed import ddp


FILLED = (
    "README.md",
    "docs/results/index.md",
    "docs/results/bounds.md",
    "docs/results/from_scratch.md",
    "docs/how-to/distributed.md",
)
"""Pages written by hand, with tables between markers."""

HEADER = "<!-- Written by `python -m benchmarks report` from benchmarks/results and benchmarks/notes/{task}.md. -->"
AUTOMATIC = (
    "The last two columns are those of the fixed setting with the best accuracy on test rows among those that take at "
    "most 3 % longer, a choice in its favour."
)


class Report:
    """All generated text and figures of one folder.

    Args:
        root: Folder with ``benchmarks/results``, ``benchmarks/notes``, ``docs`` and ``README.md``.
        allow_dirty: Whether results of files that were not committed are shown too.
    """

    def __init__(self, root: Path, *, allow_dirty: bool = False) -> None:
        self._root, self._allow_dirty = root, allow_dirty
        self._results = root / "benchmarks" / "results"
        self._runs = chosen_runs(self._results, allow_dirty=allow_dirty)
        self._grids = all_grids(self._results)
        reproduction = self._results / "reproduction"
        self._points = bounds_page.read_points(reproduction, allow_dirty=allow_dirty)
        self._scratch = from_scratch_page.read_finals(reproduction, allow_dirty=allow_dirty)

    def pages(self) -> dict[Path, str]:
        """Text of every page that has generated parts."""
        found = {}
        tables = tables_of(self._runs, self._results)
        tables |= bounds_page.tables(self._points) | from_scratch_page.tables(self._scratch)
        for name in FILLED:
            path = self._root / name
            if path.exists():
                found[path] = filled(path.read_text(encoding="utf-8"), tables)
        for task in dict.fromkeys(task for task, _ in self._runs):
            found[self._root / "docs" / "results" / f"{task}.md"] = self._task_page(task)
        equal_time = budgets.page(self._results / "budgets", allow_dirty=self._allow_dirty)
        if equal_time is not None:
            found[self._root / "docs" / "results" / budgets.PAGE] = equal_time
        of_paper = reproduction.page(self._root, allow_dirty=self._allow_dirty)
        found[self._root / "docs" / "results" / reproduction.PAGE] = of_paper
        found[self._root / "docs" / "results" / gpu.PAGE] = gpu.page(self._results / gpu.FILE)
        return found

    def draw(self) -> None:
        """Write the figures."""
        folder = self._root / "docs" / "results" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        for (task, length), runs in self._runs.items():
            title = f"{accuracy.LABELS.get(task, task)}: {accuracy.LENGTHS[length]}"
            accuracy.figure(runs, title, folder / f"{task}_{length}.png")
        budgets.draw(self._results / "budgets", folder, allow_dirty=self._allow_dirty)
        reproduction.draw(self._root, allow_dirty=self._allow_dirty)
        bounds_page.draw(self._points, folder)
        from_scratch_page.draw(self._scratch, folder)

    def _task_page(self, task: str) -> str:
        notes = notes_of(self._root / "benchmarks" / "notes" / f"{task}.md")
        lengths = [length for length in accuracy.LENGTHS if (task, length) in self._runs]
        unused = notes.keys() - {"", *lengths}
        if unused:
            raise ValueError(
                f"benchmarks/notes/{task}.md has the sections {sorted(unused)}, results has none of them."
            )
        parts = [HEADER.format(task=task), notes.get("") or f"# {accuracy.LABELS.get(task, task)}"]
        parts.append("[Methods, measures and commands](protocol.md) · [summary over all tasks](index.md)")
        for length in lengths:
            parts.append(f"## {accuracy.LENGTHS[length].capitalize()}")
            parts += [notes[length]] if length in notes else []
            parts += length_parts(task, length, self._runs[task, length], self._grids[task, length])
        return "\n\n".join(parts) + "\n"


def length_parts(task: str, length: str, runs: Runs, grids: Grids) -> list[str]:
    """Figure and tables of one task and length."""
    name = accuracy.LENGTHS[length]
    parts = [f"![accuracy against seconds, {name}](images/{task}_{length}.png)", accuracy.outcome(runs, grids)]
    parts += [f"### Accuracy at shares of the baseline's time, {name}", accuracy.budgets(runs)]
    automatic = accuracy.automatic(runs)
    return [*parts, f"### Automatic periods, {name}", AUTOMATIC, automatic] if automatic else parts


def notes_of(path: Path) -> dict[str, str]:
    """Notes by section: a title and text before the first ``## LENGTH``, and what follows each of these."""
    if not path.exists():
        return {}
    first, *rest = re.split(r"^## (\w+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {"": first.strip(), **{name: text.strip() for name, text in zip(rest[::2], rest[1::2], strict=True)}}


def tables_of(runs: Mapping[tuple[str, str], Runs], results: Path) -> dict[str, Callable[[], str]]:
    """The tables over all tasks, by the name in the marker."""
    return {
        "all tasks short": lambda: accuracy.all_tasks(runs, "short"),
        "all tasks long": lambda: accuracy.all_tasks(runs, "long"),
        "equal time": lambda: summary_tables.headline(results / "budgets", "short", runs),
        "equal time by budget": lambda: summary_tables.by_budget(results / "budgets", "short"),
        "equal time kept apart": lambda: summary_tables.by_budget(results / "budgets", "short", budgets.KEPT_APART),
        "equal time language model": lambda: summary_tables.losses(results / "budgets", "short", "smollm2"),
        "ddp": lambda: ddp.table_of(line for line in read_lines(results / "ddp.jsonl") if line["kind"] == "run"),
    }


def filled(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with every table between markers replaced.

    Raises:
        KeyError: a marker names no table.
    """

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- bench ([\w ]+) -->\n).*?(<!-- end -->)", replaced, text, flags=re.DOTALL)


def main(argv: list[str] | None = None) -> None:
    """Write pages and figures."""
    parser = parser_of("python -m benchmarks report", __doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of benchmarks/results, docs and README.md")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="also show results of files that were not committed"
    )
    options = parser.parse_args(argv)
    report = Report(options.root, allow_dirty=options.allow_dirty)
    for path, text in report.pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    report.draw()
