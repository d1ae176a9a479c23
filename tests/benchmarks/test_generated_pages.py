"""The pages of results and the tables in other pages are those that the results give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.accuracy.results import ResultsFile
from benchmarks.machine import ROOT
from tests.benchmarks.made_up_runs import RUNS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    file = ResultsFile(tmp_path / "benchmarks" / "results", "t", "short")
    for by_seed in RUNS.values():
        for run in by_seed.values():
            file.append({**run, "role": "trial", "seed": 100, "validation_metric": 0.5})
            file.append(run)
    notes = tmp_path / "benchmarks" / "notes"
    notes.mkdir()
    (notes / "t.md").write_text("# The task\n\nAbout it.\n\n## short\n\nAbout one epoch.\n")
    (tmp_path / "README.md").write_text("a\n<!-- bench all tasks short -->\nold\n<!-- end -->\nb\n")
    return tmp_path


def test_pages_are_written_and_figures_are_drawn(root: Path) -> None:
    report.main(["--root", str(root)])
    page = root / "docs" / "results" / "t.md"
    text = page.read_text()
    parts = ["# The task", "About it.", "## One epoch", "About one epoch.", "images/t_short.png", "| method | rate |"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "| multirate head k5 drift | 0.001\\* | 74.0 ± 1.4 |" in text
    assert "Three epochs" not in text
    readme = (root / "README.md").read_text()
    assert "| multirate head k5 drift | +3.5 ± 0.5 | 1.3 |\n<!-- end -->\nb\n" in readme
    assert "old" not in readme
    assert (root / "docs" / "results" / "images" / "t_short.png").stat().st_size > 10_000


def test_a_run_at_a_rate_that_was_not_chosen_is_not_shown(root: Path) -> None:
    before = report.Report(root).pages()
    ResultsFile(root / "benchmarks" / "results", "t", "short").append(
        {**RUNS["baseline"][0], "rate": 5.0, "test_metric": 0.1}
    )
    assert report.Report(root).pages() == before


def test_runs_on_files_that_were_not_committed_are_refused(root: Path) -> None:
    run = {**RUNS["head only"][0], "method": "LISA"}
    dirty = {**run, "machine": {**run["machine"], "dirty": True}}
    file = ResultsFile(root / "benchmarks" / "results", "t", "short")
    file.append({**run, "role": "trial", "seed": 100, "validation_metric": 0.5})
    file.append(dirty)
    with pytest.raises(ValueError, match="not committed"):
        report.Report(root)
    assert report.Report(root, allow_dirty=True).pages()


def test_notes_without_results_and_unknown_markers_are_named(root: Path) -> None:
    with (root / "benchmarks" / "notes" / "t.md").open("a") as notes:
        notes.write("\n## long\n\nAbout three epochs.\n")
    with pytest.raises(ValueError, match=r"t.md has the sections \['long'\]"):
        report.Report(root).pages()
    with pytest.raises(KeyError, match="other"):
        report.filled("<!-- bench other -->\n<!-- end -->", {})


def test_pages_in_the_documentation_are_those_of_the_results() -> None:
    pages = report.Report(ROOT).pages()
    assert len(pages) == len(report.FILLED) + 7 + 3
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python -m benchmarks report`"
        assert "Not run yet" not in text


def test_every_figure_of_the_pages_is_there_and_no_other() -> None:
    folder = ROOT / "docs" / "results"
    shown = {name for page in folder.glob("*.md") for name in re.findall(r"\]\(images/([^)]+)\)", page.read_text())}
    assert shown == {path.name for path in (folder / "images").iterdir()}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_and_from_result_pages_lead_somewhere() -> None:
    docs = ROOT / "docs"
    pages = docs.rglob("*.md")
    for page in pages:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            if "://" in link or not ("results/" in name or page.parent.name == "results"):
                continue
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in anchors(target), f"{page}: {link}"
