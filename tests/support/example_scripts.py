"""The example scripts as modules, with and without their marked lines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MARKER = "# multirate"
SCRIPTS = {
    "run_clm": ["--block_size=16"],
    "run_image_classification": [],
    "run_summarization": ["--max_length=8"],
    "run_sft_lora": ["--max_length=16"],
    "run_sentence_embeddings": ["--max_seq_length=8"],
}
TINY = [
    "--max_train_samples=60",
    "--per_device_train_batch_size=2",
    "--max_steps=6",
    "--logging_steps=1",
    "--use_cpu=true",
    "--disable_tqdm=true",
    "--report_to=none",
]


def plain(text: str) -> str:
    """A script without its marked lines."""
    return "\n".join(line for line in text.splitlines() if not line.rstrip().endswith(MARKER)) + "\n"


@contextmanager
def neighbours() -> Iterator[None]:
    """A script finds the other files of its folder, as it does when it is run."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLES))


def load(path: Path, name: str) -> ModuleType:
    """The file as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with neighbours():
        spec.loader.exec_module(module)
    return module
