"""Figures on README and the pages are those of the results."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_docs import ROOT, read


TASKS = {
    "TREC": "trec",
    "CIFAR-10": "cifar10",
    "sentences": "embedded",
    "sentences (bf16)": "embedded_bf16",
    "IMDB": "imdb",
    "SST-2": "sst2",
}
LENGTHS = {"1": "One epoch", "3": "Three epochs"}
LADDER, FROZEN = "multirate ladder 1,2,4 freeze", "frozen below last:2"
ACCURACY, SPEEDUP, AHEAD = 1, 3, 5
"""Places in a row of a results page."""


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def tables(text: str) -> list[list[list[str]]]:
    """Rows of each table of a text, the header first."""
    found = re.findall(r"(?:^\|.*\n)+", text + "\n", flags=re.MULTILINE)
    return [[cells(line) for line in table.splitlines() if not line.startswith("|---")] for table in found]


def results(task: str, length: str) -> dict[str, list[str]]:
    """Method -> the other cells of its row on the page of ``task``."""
    path = ROOT / "docs" / "results" / f"{TASKS[task]}.md"
    section = path.read_text(encoding="utf-8").split(f"\n## {LENGTHS[length]}\n")[1].partition("\n## ")[0]
    table = next(table for table in tables(section) if table[0][:2] == ["method", "rate"])
    return {method: row for method, *row in table}


def task_of(label: str) -> tuple[str, str]:
    """Name in `TASKS`, and number of epochs, of a row such as ``TREC (50 labels), 3`` or ``CIFAR-10, SGD``."""
    name, epochs = re.fullmatch(r"(.+?)(?:, (\d))?", label).groups(default="1")  # type: ignore[union-attr]
    return re.sub(r" \((?:50 labels|SGD)\)|, SGD|, 50 labels", "", name), epochs


def number(text: str) -> str:
    """A difference without the sign of a zero."""
    return re.sub(r"^[+-]0\.0 ", "0.0 ", text)


HEADLINE = next(table for table in tables(read("docs/index.md")) if table[0][:2] == ["task", "epochs"])[1:]


@pytest.mark.parametrize("row", HEADLINE, ids=lambda row: f"{row[0]}, {row[1]}")
def test_row_of_the_index(row: list[str]) -> None:
    label, epochs, speedup, same_steps, same_time, frozen = row
    found = results(task_of(label)[0].replace(", bf16", " (bf16)"), epochs)
    assert found[LADDER][SPEEDUP] == speedup
    assert number(found[LADDER][AHEAD]) == same_time
    assert (found[FROZEN][AHEAD] if FROZEN in found else "not run") == frozen
    means = [float(found[name][ACCURACY].split()[0]) for name in (LADDER, "baseline")]
    assert float(same_steps.split()[0]) == pytest.approx(means[0] - means[1], abs=0.11)


def test_the_readme_has_the_range_of_the_index() -> None:
    text = " ".join(read("README.md").split())
    speedups = [float(row[2]) for row in HEADLINE]
    changes = [float(row[3].split()[0]) for row in HEADLINE]
    assert f"is {min(speedups):.1f} to {max(speedups):.1f} times as fast" in text
    assert f"accuracy changed by {min(changes):+.1f} to {max(changes):+.1f} points" in text


CARD = tables(read("docs/methods/multirate.md").split("## Why this default")[1].partition("\n## ")[0])
PAIRS = (
    ("multirate ladder 1,2,4,8 freeze", "multirate ladder 1,2,4,8 drift"),
    ("multirate last:1 k5 freeze", "multirate last:1 k5 drift"),
    (LADDER, "multirate last:2 k5 drift"),
)


@pytest.mark.parametrize(
    ("row", "pair"),
    [(row, pair) for table, pair in zip(CARD, PAIRS, strict=True) for row in table[1:]],
    ids=lambda value: value[0],
)
def test_row_of_the_reasons_for_the_default(row: list[str], pair: tuple[str, str]) -> None:
    found = results(*task_of(row[0]))
    for method, given in zip(pair, (row[1:4], row[4:]), strict=True):
        result = found.get(method) or found[f"{method} 1"]  # drift at the first idle step
        assert given == [result[ACCURACY], result[SPEEDUP], number(result[AHEAD])]
