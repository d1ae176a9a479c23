"""Whatever a user names is text: on the page, in its pictures, on a model card, on a terminal, in JSON."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hf_multirate import Multirate, MultirateConfig, RateGroup, plan
from hf_multirate.cli.plan_tables import print_plans
from hf_multirate.config.auto_periods import AutoPeriods
from hf_multirate.config.text import markdown, one_line, shortened
from hf_multirate.reporting import report
from hf_multirate.reporting.charts import svgs
from hf_multirate.reporting.run_record import card_section, read_record
from tests.planning.test_plan import stack
from tests.support.runs import example, recorded_pair, trainer_for


NAMES = {
    "tag": "<script>alert(1)</script>",
    "attribute": '" onload="alert(1)" x="',
    "dollars": "cost in $ and $\\frac{",
    "formula": "a_{b^c \\nosuch",
    "entity": "&lt;b&gt;",
    "lines": "two\nlines\r\n| more |",
    "emoji": "\U0001f600 \u4e2d",
    "long": "x" * 5000,
    "hidden": "_hidden",
    "markup": "[red]a[/red] [/] :smile:",
    "ink": "#818283",
    "id": 'id="x" url(#y) href="#z"',
    "font": "font: 'DejaVu Sans'",
    "terminal": "\x1b[31mred\x00",
    "surrogate": "half \ud800",
    "path": "../../etc/passwd",
    "template": "{{ 7 * 7 }} {% raw %}",
    "markdown": "`a` **b** [c](http://d.e) | <img src=x> _f_ www.g.h",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_pair(tmp_path_factory.mktemp("runs"))


def renamed(folder: Path, out: Path, name: str) -> Path:
    """The record in ``folder``, with ``name`` for whatever a user can name."""
    record = read_record(folder)
    slow = next(group["name"] for group in record.groups if group["name"] != "fast")
    groups = [
        {**group, "name": name, "patterns": [name]} if group["name"] == slow else group for group in record.groups
    ]
    blocks = {
        name if block == "head" else block: {
            **parts,
            "groups": {name if group == slow else group: size for group, size in parts["groups"].items()},
        }
        for block, parts in record.blocks.items()
    }
    logs = [
        {f"eval_{name}" if key == "eval_loss" else key: value for key, value in entry.items()}
        | ({f"multirate/loss_decrease/{name}": 0.5} if "loss" in entry else {})
        for entry in record.logs
    ]
    arguments = record.arguments | {"optim": name, "lr_scheduler_type": name}
    config = {**record.config, name: name}
    replace(record, groups=groups, blocks=blocks, logs=logs, arguments=arguments, config=config, model=name).write(out)
    return out


@pytest.fixture(scope="module")
def clean(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run whose names are letters."""
    folder = tmp_path_factory.mktemp("clean")
    run = renamed(runs / "multirate", folder, "letters")
    return report(run, runs / "baseline", allow_differences=True).read_text()


@pytest.mark.parametrize("kind", ["tag", "attribute", "dollars", "lines", "emoji", "long", "surrogate", "template"])
def test_names_are_text_on_the_page(runs: Path, tmp_path: Path, clean: str, kind: str) -> None:
    name = NAMES[kind]
    folder = renamed(runs / "multirate", tmp_path / "run", name)
    page = report(folder, runs / "baseline", tmp_path / "report", allow_differences=True).read_text(encoding="utf-8")
    assert tags(page) <= tags(clean)
    assert "onload" not in {attribute for tag in re.findall(r"<[a-z][^>]*>", page) for attribute in attributes(tag)}
    shown = name.encode("utf-8", errors="replace").decode()
    assert unescape(page).count("two\nlines" if "\r" in shown else shown) > 3
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert f"eval_{name}" in figures["metrics"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "report"}


def tags(page: str) -> set[str]:
    return set(re.findall(r"<([a-zA-Z!/]+)", page))


def attributes(tag: str) -> list[str]:
    return re.findall(r'\s([\w:-]+)="', re.sub(r'="[^"]*"', '=""', tag))


@pytest.mark.parametrize("kind", NAMES)
def test_pictures_are_whole_and_show_the_name(runs: Path, tmp_path: Path, kind: str) -> None:
    name = NAMES[kind]
    run = read_record(renamed(runs / "multirate", tmp_path, name))
    found = dict(svgs({"multirate": run}))
    label = shortened(f"eval_{name}")
    texts = []
    for title, picture in found.items():
        root = ElementTree.fromstring(picture)
        assert root.attrib["aria-label"] == one_line(title)
        texts += ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
        assert "onload" not in {key for element in root.iter() for key in element.attrib}
    assert label in texts
    assert shortened(name) in texts
    assert shortened(f"{name}: every 4 steps") in texts


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_one_cell_of_a_model_card(runs: Path, tmp_path: Path, kind: str) -> None:
    name = NAMES[kind]
    card = card_section(read_record(renamed(runs / "multirate", tmp_path, name)))
    (row,) = [line for line in card.splitlines() if line.endswith("| 4 | drift |")]
    assert row.count("|") == 4
    cell = row.split("|")[1].strip()
    assert unescape(cell) == one_line(name)
    assert not re.search(r"[<>`*\[\]$~\\]|://|www\.|\b_|_\b", cell)


def test_names_that_are_not_markup_stay_as_they_are() -> None:
    for name in ("block_0", "part 1", "lora_A.default", "slow", "a/b-c (d)", "\u00fcber"):
        assert markdown(name) == name


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_text_on_a_terminal(kind: str) -> None:
    name, output = NAMES[kind], io.StringIO()
    model, batch = stack()
    groups = (RateGroup("fast", "^head", 1), RateGroup(name, ".*", 4, idle="drift"))
    print_plans(
        plan(model, batch, {name: MultirateConfig(groups), f"{name} off": MultirateConfig.off()}),
        Console(file=output, width=40_000),
        details=True,
    )
    told = output.getvalue()
    assert one_line(f"{name}: steps of a cycle") in told
    assert one_line(f"{name} off: every step is a full step") in told
    assert re.search(rf"│ {re.escape(one_line(name))} +│ +4 │", told)
    assert "\x1b" not in told


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("auto", [None, AutoPeriods(1.5)], ids=["periods", "auto"])
def test_names_are_one_cell_of_a_description(kind: str, auto: AutoPeriods | None) -> None:
    name, (model, _) = NAMES[kind], stack()
    slow = RateGroup(name, ".*", 4, "drift") if auto is None else RateGroup(name, ".*")
    groups = (RateGroup("fast", "^head", 1), slow)
    ordinary = (groups[0], replace(groups[1], name="slow"))
    lines, wanted = (
        Multirate(MultirateConfig(given, auto_periods=auto)).assign(model).describe().split("\n")
        for given in (groups, ordinary)
    )
    assert len(lines) == len(wanted)
    assert shortened(name) in "\n".join(lines)
    assert all(line.isprintable() and len(line) < 200 for line in lines)


def test_a_metric_of_the_users_own_reaches_the_page_as_text(tmp_path: Path) -> None:
    _, rows = example("bert")
    metrics: dict[str, Any] = {"<i>$x": 0.5, 'a"b': float("nan")}
    trainer = trainer_for(tmp_path, MultirateConfig.two_rate("last:1", 4, idle="drift"), eval_dataset=rows)
    trainer.compute_metrics = lambda prediction: metrics
    trainer.train()
    trainer.evaluate()
    page = report(tmp_path).read_text()
    assert "<i>" not in page
    assert "eval_&lt;i&gt;$x" in page
