"""The report: what it says, what it refuses, that all it shows is in the records; ``compare`` as a user runs it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_multirate.cli import main
from hf_multirate.cli.compare import _with_output_folder, compare
from hf_multirate.reporting import report
from hf_multirate.reporting.run_record import FILE, read_record
from tests.support.runs import PERIOD, recorded_pair


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import argparse
from pathlib import Path
from tests.support.runs import CONFIG, example, trainer_for

parser = argparse.ArgumentParser()
parser.add_argument("--output_dir", required=True)
parser.add_argument("--steps", type=int, default=6)
options = parser.parse_args()
assert not Path(options.output_dir).exists(), "another run's"
trainer_for(Path(options.output_dir), CONFIG, max_steps=options.steps, eval_dataset=example("bert")[1]).train()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_pair(tmp_path_factory.mktemp("runs"))


def changed(folder: Path, out: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A run whose record differs from that in ``folder``."""
    record = json.loads((folder / FILE).read_text())
    change(record)
    out.mkdir()
    (out / FILE).write_text(json.dumps(record))
    return out


def cells(page: str) -> dict[str, list[str]]:
    """Key -> texts of the row of figures."""
    rows = re.findall(r'<tr data-key="([^"]+)">(.*?)</tr>', page)
    return {key: re.findall(r'<td class="number">([^<]*)</td>', row) for key, row in rows}


def test_figures_of_the_page_are_those_of_the_records(runs: Path, tmp_path: Path) -> None:
    page = report(runs / "multirate", runs / "baseline", tmp_path).read_text()
    run, baseline = read_record(runs / "multirate"), read_record(runs / "baseline")
    found = json.loads((tmp_path / "report.json").read_text())
    seconds = [r.summary["seconds"] - r.summary["seconds_aside"]["evaluation"] for r in (run, baseline)]
    assert found["speedup_proved"] == pytest.approx(seconds[1] / seconds[0])
    assert found["metrics"]["eval_loss"] == [entry["eval_loss"] for entry in run.logs if "eval_loss" in entry][-1]
    shown = cells(page)
    assert shown["seconds"] == [f"{value:.4g}" for value in seconds]
    assert shown["full_steps"] == ["3", "12"]
    assert shown["eval_loss"] == [f"{found[key]['eval_loss']:.4g}" for key in ("metrics", "baseline_metrics")]
    assert shown["speedup_proved"][0] == f"{found['speedup_proved']:.4g}"
    assert f"{found['speedup_proved']:.2f} times as fast" in page
    assert "not-comparable" not in page


def test_the_page_needs_nothing_from_elsewhere(runs: Path, tmp_path: Path) -> None:
    page = report(runs / "multirate", runs / "baseline", tmp_path).read_text()
    links = re.findall(r'(?:src|href|url\()\s*=?\s*"?([^")\s>]+)', page)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert len(pictures) == page.count("<figure>") == 7


def test_a_run_alone_proves_nothing_and_says_so(runs: Path) -> None:
    page = report(runs / "multirate")
    assert page == runs / "multirate" / "report" / "report.html"
    assert "standard training needs a baseline run" in page.read_text()
    assert "speedup_proved" not in cells(page.read_text())


@pytest.mark.parametrize("switch", ["--output_dir", "--output-dir"])
def test_each_run_of_a_comparison_has_a_folder_of_its_own(switch: str) -> None:
    assert _with_output_folder([switch, "out", "--seed=1"], "baseline") == [switch, "out/baseline", "--seed=1"]
    assert _with_output_folder(["--x", f"{switch}=out"], "multirate") == ["--x", f"{switch}=out/multirate"]
    assert _with_output_folder([switch], "multirate") == [switch]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["arguments"].update(seed=7), "seed: 42 and 7"),
        (lambda r: r["arguments"].update(bf16=True), "bf16: False and True"),
        (lambda r: r["data"].update(rows=7), "rows of training data: 12 and 7"),
        (lambda r: r["data"]["checksums"].reverse(), "checksums of the first batches"),
        (lambda r: r["summary"].update(steps=7), "steps: 12 and 7"),
        (lambda r: r["environment"].update(threads=64), "threads: 1 and 64"),
        (lambda r: r.update(standard=False), "the baseline is not standard training"),
    ],
)
def test_runs_that_differ_are_no_proof(
    runs: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    other = changed(runs / "baseline", tmp_path / "other", change)
    with pytest.raises(ValueError, match=f"cannot be compared with .*{words}"):
        report(runs / "multirate", other, tmp_path / "report")
    page = report(runs / "multirate", other, tmp_path / "report", allow_differences=True).read_text()
    assert "not comparable" in page
    assert words in page


def test_runs_of_the_same_time_may_differ_in_their_steps(runs: Path, tmp_path: Path) -> None:
    def timed(steps: int, seconds: float) -> Callable[[dict[str, Any]], Any]:
        return lambda r: r["summary"].update(steps=steps, train_time=seconds)

    run = changed(runs / "multirate", tmp_path / "run", timed(20, 90.0))
    baseline = changed(runs / "baseline", tmp_path / "baseline", timed(12, 90.0))
    page = report(run, baseline).read_text()
    assert "Both runs trained for 1 min 30 s: 20 steps, and 12 of the baseline. The final eval_loss is" in page
    assert json.loads((run / "report" / "report.json").read_text())["train_time"] == 90.0
    longer = changed(runs / "baseline", tmp_path / "longer", timed(12, 91.0))
    with pytest.raises(ValueError, match=r"cannot be compared with .*steps: 20 and 12"):
        report(run, longer)
    damaged = changed(runs / "baseline", tmp_path / "damaged", lambda r: r["summary"].update(train_time="1min"))
    with pytest.raises(ValueError, match="train_time"):
        report(run, damaged)


def test_other_settings_that_differ_are_told(runs: Path, tmp_path: Path) -> None:
    other = changed(runs / "baseline", tmp_path / "other", lambda r: r["arguments"].update(learning_rate=0.5))
    page = report(runs / "multirate", other, tmp_path / "report").read_text()
    assert "learning_rate: 0.01 and 0.5" in page
    assert "not comparable" not in page


def test_text_of_a_record_is_no_markup(runs: Path, tmp_path: Path) -> None:
    other = changed(runs / "multirate", tmp_path / "other", lambda r: r.update(model="<script>alert(1)</script>"))
    assert "<script>" not in report(other).read_text()


def test_the_command_makes_the_report(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(runs / "multirate"), str(runs / "baseline"), "--out", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    with pytest.raises(SystemExit, match=r"error: .* has no multirate_record\.json"):
        main(["report", str(tmp_path)])


def test_compare_runs_a_script_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT.format(tests=str(Path(__file__).parents[2])))
    main(["compare", "--out", "both", "train.py", "--output_dir", "runs", "--steps", str(PERIOD + 1)])
    assert capfd.readouterr().out.splitlines()[-1] == str(Path("both", "report", "report.html"))
    baseline, multirate = (read_record(Path("both", side)) for side in ("baseline", "multirate"))
    assert baseline.standard
    assert baseline.steps["full"] == [1] * (PERIOD + 1)
    assert multirate.steps["full"] == [1, 0, 0, 0, 1]
    assert multirate.data == baseline.data
    assert {path.name for path in Path("runs").iterdir()} == {"baseline", "multirate"}
    with pytest.raises(ValueError, match=r"baseline run of 'train.py' ended with exit code 1"):
        compare("train.py", ["--output_dir=runs"], "both")  # the script will not have a folder that is there


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there is no script"), ("raise SystemExit(3)", "exit code 3"), ("print('no training')", "no record")],
)
def test_compare_says_why_it_cannot(tmp_path: Path, text: str | None, words: str) -> None:
    script = tmp_path / "script.py"
    if text is not None:
        script.write_text(text)
    with pytest.raises(ValueError, match=words):
        compare(str(script), [], tmp_path / "out")


def test_compare_says_where_it_cannot_write(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(ValueError, match="no record can be written into"):
        compare(str(script), [], script / "out")
