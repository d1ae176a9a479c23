"""examples/run_glue.py: what it reads, what it refuses, what it leaves behind."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from hf_multirate.reporting.run_record import FILE


EXAMPLES = Path(__file__).parents[2] / "examples"
MARKER = "# multirate"
SUMMARY = "multirate_summary.json"
WORDS = ["good", "bad", "film", "plot", "a", "the", "very", "not", "dull", "fine"]
GOOD, BAD = "a very good film", "the plot not fine bad"
TIMING = {
    "full_steps",
    "fast_steps",
    "seconds_full_step",
    "seconds_fast_step",
    "speedup_predicted",
    "speedup",
    "speedup_of_steps",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A three-layer BERT and a WordPiece tokenizer of fifteen words."""
    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The example as a module; it finds its neighbour glue_data as it does when run as a script."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("run_glue")
    finally:
        sys.path.remove(str(EXAMPLES))


def rows(count: int, **columns: Any) -> pd.DataFrame:
    """Sentences that alternate between two classes; ``columns`` replace or add to them."""
    texts = [GOOD if number % 2 else BAD for number in range(count)]
    return pd.DataFrame({"sentence": texts, "label": [number % 2 for number in range(count)], **columns})


def write(table: pd.DataFrame, path: Path) -> str:
    match path.suffix:
        case ".csv":
            table.to_csv(path, index=False)
        case ".json":
            table.to_json(path, orient="records", lines=True)
        case _:
            table.to_parquet(path)
    return str(path)


def arguments(model_dir: str, tmp_path: Path, train: pd.DataFrame, suffix: str = ".csv", **options: Any) -> list[str]:
    """Command line for a run of four steps."""
    chosen = {
        "model_name_or_path": model_dir,
        "train_file": write(train, tmp_path / f"train{suffix}"),
        "validation_file": write(train.iloc[:6], tmp_path / f"validation{suffix}"),
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    return [f"--{name}={value}" for name, value in chosen.items() if value is not None]


def run(script_path: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # The repository root stands in for an installed package.
    environment["PYTHONPATH"] = str(EXAMPLES.parent)
    command = [sys.executable, str(script_path), *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def marked_lines() -> list[str]:
    return [line for line in (EXAMPLES / "run_glue.py").read_text().splitlines() if line.rstrip().endswith(MARKER)]


def test_script_leaves_a_complete_summary(model_dir: str, tmp_path: Path) -> None:
    done = run(EXAMPLES / "run_glue.py", arguments(model_dir, tmp_path, rows(16)))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    expected = TIMING | {"eval_accuracy", "eval_f1_macro", "peak_memory_bytes", "train_runtime", "configuration"}
    assert expected <= set(summary)
    assert summary["full_steps"] + summary["fast_steps"] == 4
    assert summary["peak_memory_bytes"] > 2**20
    assert "eval_accuracy" in done.stdout
    assert {"seed", "learning_rate", "num_train_epochs", "model", "data", "versions"} <= set(summary["configuration"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [FILE, SUMMARY]


def test_script_without_its_marked_lines_is_a_script_for_trainer(model_dir: str, tmp_path: Path) -> None:
    assert 1 <= len(marked_lines()) <= 12
    folder = shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    lines = [line for line in (folder / "run_glue.py").read_text().splitlines() if line not in marked_lines()]
    assert not any("import" in line and "hf_multirate" in line for line in lines)
    (folder / "run_glue.py").write_text("\n".join(lines))
    done = run(folder / "run_glue.py", arguments(model_dir, tmp_path, rows(16)))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert "eval_accuracy" in summary
    assert not TIMING & set(summary)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_other_formats_train_as_well(script: ModuleType, model_dir: str, tmp_path: Path, suffix: str) -> None:
    summary = script.main(arguments(model_dir, tmp_path, rows(16), suffix))
    assert summary["eval_runtime"] > 0


def test_multirate_off_takes_only_full_steps(script: ModuleType, model_dir: str, tmp_path: Path) -> None:
    summary = script.main(arguments(model_dir, tmp_path, rows(16), multirate="off"))
    assert (summary["full_steps"], summary["fast_steps"]) == (4, 0)
    assert summary["speedup_of_steps"] == 1.0


def test_pairs_named_columns_and_named_classes(script: ModuleType, model_dir: str, tmp_path: Path) -> None:
    table = rows(16).assign(first=GOOD, second=BAD, verdict=["none", "yes"] * 8)
    options = {"text_column": "first,second", "label_column": "verdict", "multirate": "off"}
    argv = arguments(model_dir, tmp_path, table, **options)
    summary = script.main([*argv, "--max_train_samples=8", "--max_eval_samples=4"])
    assert summary["configuration"]["train_rows"] == 8
    assert 0 <= summary["eval_accuracy"] <= 1


def test_scores_are_a_regression(script: ModuleType, model_dir: str, tmp_path: Path) -> None:
    # Varied texts: with only two the predictions of the tiny model could all be equal.
    texts = [" ".join(WORDS[: number % 9 + 1]) for number in range(16)]
    table = rows(16, sentence=texts, label=[number / 4 - 1.0 for number in range(16)])
    summary = script.main(arguments(model_dir, tmp_path, table, multirate="off"))
    assert {"eval_pearson", "eval_spearmanr"} <= set(summary)
    assert "eval_accuracy" not in summary
    # The head of two classes was replaced to train, but there is no sense in scoring with a new one.
    with pytest.raises(ValueError, match="could not be loaded"):
        script.main([*arguments(model_dir, tmp_path, table), "--do_eval"])


def test_resumed_run_ends_where_the_whole_run_ends(script: ModuleType, model_dir: str, tmp_path: Path) -> None:
    argv = arguments(model_dir, tmp_path, rows(32), save_strategy="steps", save_steps=3, max_steps=7)
    whole = script.main(argv)
    resumed = script.main([*argv, f"--resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-3'}"])
    other = script.main([*argv, "--seed=7"])
    assert resumed["eval_loss"] == whole["eval_loss"]
    assert other["eval_loss"] != whole["eval_loss"]


def test_accumulated_loss_is_the_mean_over_the_batches(script: ModuleType, model_dir: str, tmp_path: Path) -> None:
    options = {"max_steps": 1, "learning_rate": 0.0, "multirate": "off"}
    argv = arguments(model_dir, tmp_path, rows(16), **options)
    one = script.main([*argv, "--per_device_train_batch_size=16"])
    four = script.main([*argv, "--per_device_train_batch_size=4", "--gradient_accumulation_steps=4"])
    # Not exact: dropout differs. Without the correction it would be four times as large.
    assert four["train_loss"] == pytest.approx(one["train_loss"], rel=0.2)


def test_command_line_wins_over_the_defaults(script: ModuleType, tmp_path: Path) -> None:
    _, data, args = script.parse_arguments([])
    assert (args.learning_rate, args.num_train_epochs) == (script.DEFAULTS["learning_rate"], 3.0)
    assert args.do_train
    assert args.do_eval
    assert data.max_seq_length == script.DEFAULTS["max_seq_length"]
    _, _, args = script.parse_arguments(["--learning_rate=0.5", "--do_eval", f"--output_dir={tmp_path}"])
    assert (args.learning_rate, args.do_train, args.do_eval) == (0.5, False, True)


def test_embedded_split_is_fixed_and_disjoint(script: ModuleType) -> None:
    data = script.load_embedded()
    train, validation = set(data.train["text"]), set(data.validation["eval"]["text"])
    assert (len(train), len(validation)) == (7_030, 1_500)
    assert not train & validation
    again = script.load_embedded()
    assert list(again.validation["eval"]["text"]) == list(data.validation["eval"]["text"])
    assert 0.45 < sum(data.validation["eval"]["labels"]) / 1_500 < 0.55


def test_summary_replaces_the_old_one_in_one_step(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / SUMMARY
    sys.modules["closing"].write_summary({"loss": float("nan"), "steps": 3}, path)
    assert json.loads(path.read_text()) == {"loss": None, "steps": 3}
    with pytest.raises(TypeError, match="not JSON serializable"):
        sys.modules["closing"].write_summary({"loss": object()}, path)
    assert json.loads(path.read_text())["steps"] == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("label", [-1, None, float("nan")])
@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_missing_label_is_refused(script: ModuleType, tmp_path: Path, label: Any, suffix: str) -> None:
    table = rows(6, label=[0, 1, label, 1, 0, 1])
    argv = arguments("unused", tmp_path, table, suffix)
    with pytest.raises(ValueError, match=r"1 of 6 rows of .* have no label in column 'label': the first is row 3"):
        script.main(argv)
    assert not (tmp_path / "out").exists()


BAD_INPUTS = {
    "one class": (rows(6, label=[1] * 6), {}, "only one class, '1'"),
    "no label column": (rows(6).rename(columns={"label": "stars"}), {}, r"'label' is not .* \['sentence', 'stars'\]"),
    "no text column": (rows(6).rename(columns={"sentence": "body"}), {}, r"\['body', 'label'\].*--text_column"),
    "other text column": (rows(6), {"text_column": "review"}, r"\['review'\] is not one of the columns"),
    "missing text": (rows(6, sentence=[GOOD, None, BAD] * 2), {}, "2 of 6 rows .* no text in column 'sentence'"),
    "no rows": (rows(0), {}, "holds no rows"),
    "no file": (rows(6), {"train_file": "gone.csv"}, "--train_file 'gone.csv' is not an existing file"),
    "extension": (rows(6), {"train_file": "train.xlsx"}, r"extension '\.xlsx'; give a file in \.csv, \.json"),
    "half the files": (rows(6), {"validation_file": None}, "give both or neither"),
    "task and files": (rows(6), {"task_name": "sst2"}, "give one of them"),
    "unknown task": (rows(6), {"task_name": "sst3", "train_file": None, "validation_file": None}, "'sst3' is no GLUE"),
    "hub out of reach": (
        rows(6),
        {"task_name": "sst2", "train_file": None, "validation_file": None},
        "'sst2' could not be loaded from the Hugging Face hub .*--train_file",
    ),
    "no train samples": (rows(6), {"max_train_samples": 0}, "--max_train_samples is 0; give at least 1"),
    "no checkpoint": (rows(6), {"resume_from_checkpoint": "gone"}, "--resume_from_checkpoint 'gone' is not a folder"),
    "no model": (rows(6), {"model_name_or_path": "no/such-model"}, "--model_name_or_path 'no/such-model' could not"),
}


@pytest.mark.parametrize(("table", "options", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused_and_nothing_overwritten(
    script: ModuleType, tmp_path: Path, table: pd.DataFrame, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SUMMARY).write_text("old")
    # The model does not exist either: data is checked before a model is loaded.
    with pytest.raises(ValueError, match=message):
        script.main(arguments("no/such-model", tmp_path, table, **options))
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [(SUMMARY, "old")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multirate_period": 0}, "multirate_period must be at least 1, got 0"),
        ({"multirate_fast": "last:9"}, "asks for more than the 3 blocks"),
        ({"multirate_fast": "no_such_name"}, "matches no trainable parameter"),
        ({"multirate_fast": "top:1"}, "unknown preset 'top:1'"),
        ({"multirate_config": "gone.json"}, "'gone.json' cannot be read"),
    ],
)
def test_rate_groups_that_do_not_fit_are_refused_before_training(
    script: ModuleType, model_dir: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(script.InputError, match=message):
        script.main(arguments(model_dir, tmp_path, rows(6), **options))
    assert not (tmp_path / "out" / SUMMARY).exists()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", 'sentence,label\n"never closed,1\n'),
        (".csv", "sentence,label\ngood,1\nbad,0,0,0\n"),
        (".csv", "sentence,label\ngood,1,5\nbad,0,5\n"),
        (".csv", ""),
        (".json", '{"sentence": "good", "label": 1}\n{"sentence": \n'),
        (".json", "[1, 2]"),
        (".parquet", "sentence,label\ngood,1\n"),
    ],
)
def test_malformed_file_is_refused(script: ModuleType, tmp_path: Path, suffix: str, content: str) -> None:
    argv = arguments("unused", tmp_path, rows(6), suffix)
    (tmp_path / f"train{suffix}").write_text(content)
    with pytest.raises(ValueError, match=f"train{suffix}' could not be parsed as {suffix[1:]} .*Repair the file"):
        script.main(argv)
    assert not (tmp_path / "out").exists()


def test_labels_of_validation_must_be_known(script: ModuleType, tmp_path: Path) -> None:
    argv = arguments("unused", tmp_path, rows(6))
    write(rows(6, label=[0, 1, 2] * 2), tmp_path / "validation.csv")
    with pytest.raises(ValueError, match=r"has labels \['2'\] that the train file has not"):
        script.main(argv)


def test_output_dir_that_cannot_be_written_is_refused(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    argv = arguments("unused", tmp_path, rows(6), output_dir=str(tmp_path / "file" / "out"))
    with pytest.raises(ValueError, match=r"--output_dir .* cannot be written"):
        script.main(argv)


def test_missing_example_package_names_the_extra(script: ModuleType) -> None:
    with pytest.raises(ValueError, match=r'pip install "hf-multirate\[examples\]"'):
        script.packaged("no_such_package", "model")


def test_error_reaches_the_shell_without_a_traceback(tmp_path: Path) -> None:
    done = run(EXAMPLES / "run_glue.py", arguments("unused", tmp_path, rows(6, label=[1] * 6)))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
