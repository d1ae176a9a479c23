"""Kept runs are repeated at the kept rate and steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.accuracy.results import ResultsFile
from benchmarks.budgets import suite
from tests.benchmarks.test_budgets import TWO, options


pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.usefixtures("_tiny_budgets"),
]


def test_kept_runs_end_with_the_same_accuracy_and_nothing_is_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = options(tmp_path, "--budgets", "1.0", "--seeds", "1")
    suite.main(words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    capsys.readouterr()
    # The words of the documentation are short for --tasks and --budgets.
    main(["accuracy", "--task", "tiny", "--budget", "1.0", "--again", *words[2:-4], "--seeds", "1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row.split(" | ")[3] for row in rows] == list(TWO)
    assert all(row.endswith("| +0.0 |") for row in rows)
    for row in rows:
        kept, again = row.split(" | ")[7:9]
        assert kept == again
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}


def test_a_repetition_takes_the_kept_steps_and_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(tmp_path, "--budgets", "1.0", "--seeds", "1")
    suite.main(words)
    path = tmp_path / "tiny_short.jsonl"
    kept = {r["method"]: r for r in ResultsFile(tmp_path, "tiny", "short").runs if r["role"] == "final"}
    text = path.read_text()
    path.write_text(text.replace(f'"test_metric": {kept["baseline"]["test_metric"]}', '"test_metric": 2.0'))
    assert path.read_text() != text
    capsys.readouterr()
    suite.main([*words, "--again"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row[5:7] for row in rows] == [[str(kept[row[3]]["rate"]), str(kept[row[3]]["steps"])] for row in rows]
    assert rows[0][7] == "200.0"
    assert float(rows[0][9].rstrip(" |")) < -100


def test_without_kept_runs_nothing_can_be_repeated(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no result"):
        suite.main(options(tmp_path, "--budgets", "1.0", "--seeds", "1", "--again"))
