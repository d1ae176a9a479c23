"""What is declared to work is what the tests are run with."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def declared() -> dict[str, str]:
    """Package -> its oldest version by setup.cfg."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = settings["options"]["install_requires"].split()
    return dict(line.split(">=") for line in lines)


def pinned(name: str) -> dict[str, str]:
    text = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8")
    return {package.lower(): version for package, version in re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("package", ["torch", "transformers", "accelerate", "datasets", "evaluate", "peft"])
def test_the_oldest_version_is_one_that_is_tested(package: str) -> None:
    oldest, tested = declared()[package].split("."), pinned("lower")[package].split(".")
    assert tested[: len(oldest)] == oldest
