"""Commands that README and the pages show: programs, files, targets and switches exist."""

from __future__ import annotations

import configparser
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from hf_multirate import MultirateTrainingArguments
from hf_multirate.cli import _parser
from tests.docs.test_docs import PAGES, ROOT, fences
from tests.support.example_scripts import load


OF_THE_READER = "train.py"
"""Name of a script of the reader's, whose arguments are those of the package."""


def commands(page: str) -> list[str]:
    """Lines of a page to type into a terminal, without comments."""
    text = "\n".join(fences(page, "(?:bash|console)")).replace("\\\n", " ")
    return [command for line in text.splitlines() if (command := re.sub(r"(^|\s)#.*$", "", line).strip())]


ALL = [(page, command) for page in PAGES for command in commands(page)]


def options(words: Sequence[str]) -> set[str]:
    """The switches among ``words``, without what is the value of another one."""
    return {match[1] for word in words if (match := re.fullmatch(r"(--[\w-]+)(=.*)?", word))}


class Checks:
    """Checks one command, by the program that it starts."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self._folder = folder

    def check(self, words: list[str]) -> None:
        while re.match(r"[A-Z_]+=", words[0]):  # variables of the environment
            words = words[1:]
        known = {
            "make": self._make,
            "pip": self._pip,
            "hf-multirate": self._program,
            "python": self._python,
            "accelerate": self._launcher,
            "torchrun": self._launcher,
        }
        known[words[0]](words[1:])

    def _make(self, words: list[str]) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        target, *variables = words
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
        for variable in variables:
            name, _, value = variable.partition("=")
            assert f"$({name})" in makefile
            if target == "glue" and name == "ARGS":
                self._script("examples/run_glue.py", shlex.split(value))

    def _pip(self, words: list[str]) -> None:
        assert words[0] == "install"
        settings = configparser.ConfigParser()
        settings.read(ROOT / "setup.cfg", encoding="utf-8")
        extras = {extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")}
        assert extras <= set(settings["options.extras_require"])

    def _program(self, words: list[str]) -> None:
        parsed = _parser().parse_args(words)
        if parsed.command == "compare":
            self._script(parsed.script, parsed.arguments)

    def _python(self, words: list[str]) -> None:
        if words[0] == "-m" and words[1].split(".")[0] == "benchmarks":
            self._benchmarks("benchmarks.__main__" if words[1] == "benchmarks" else words[1], words[2:])
        else:
            self._script(words[0], words[1:])

    def _launcher(self, words: list[str]) -> None:
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
        files = [word for word in words[:place] if word.endswith(".yaml")]
        assert all((ROOT / file).is_file() for file in files)
        self._script(words[place], words[place + 1 :])

    def _benchmarks(self, module: str, words: list[str]) -> None:
        words, _, rest = " ".join(map(shlex.quote, words)).partition(" -- ")
        given = shlex.split(words)
        names = [word for i, word in enumerate(given) if not any(w.startswith("--") for w in given[: i + 1])]
        main = importlib.import_module(module).main
        assert options(given) <= self._options_of(lambda: main([*names, "--help"]))
        if rest:
            self._script("examples/run_glue.py", shlex.split(rest))

    def _script(self, path: str, arguments: Sequence[str]) -> None:
        if path == OF_THE_READER:
            known = set(re.findall(r"--\w+", HfArgumentParser(MultirateTrainingArguments).format_help()))
        else:
            file = ROOT / path
            assert file.is_file(), path
            copied = self._folder / file.name
            shutil.copy(file, copied)
            script = load(copied, f"{file.stem}_of_the_docs")
            self._monkeypatch.setattr(sys, "argv", [path, "--help"])
            known = self._options_of(script.main)
        assert options(arguments) <= known

    def _options_of(self, helps: Callable[[], object]) -> set[str]:
        """Switches that the help of a program names."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            helps()
        assert not ended.value.code
        return set(re.findall(r"--[\w-]+", self._capsys.readouterr().out))


@pytest.fixture
def checks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Checks:
    return Checks(capsys, monkeypatch, tmp_path)


@pytest.mark.filterwarnings("ignore")  # of the libraries that scripts import
@pytest.mark.parametrize(("page", "command"), ALL, ids=lambda text: text[:60])
def test_command(page: str, command: str, checks: Checks) -> None:
    del page
    checks.check(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    ["make gleu", "pip install '.[nothing]'", "python examples/none.py", "python train.py --multirate_idel drift"],
)
def test_a_wrong_command_is_found(command: str, checks: Checks) -> None:
    with pytest.raises(AssertionError):
        checks.check(shlex.split(command))


def test_readme_has_the_two_commands() -> None:
    assert [command for command in commands("README.md") if command.startswith("make")] == ["make glue", "make test"]
