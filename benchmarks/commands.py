"""A command line of several programs, each with its own options."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One program.

    Attributes:
        module: Its module, which has ``main(argv)``. It is imported when it is run, so that the others cost no time.
        summary: One line for ``--help``.
    """

    module: str
    summary: str


def dispatch(prog: str, description: str, commands: Mapping[str, Command], argv: Sequence[str]) -> Any:
    """Run the command named by the first word, with the other words as its arguments. Returns its result."""
    width = max(map(len, commands))
    listed = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"commands:\n{listed}\n\n`{prog} COMMAND --help` shows the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands, metavar="COMMAND", help=", ".join(commands))
    name = parser.parse_args(argv[:1]).command
    return importlib.import_module(commands[name].module).main(list(argv[1:]))


def parser_of(prog: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of one command; ``description`` is the docstring of its module."""
    return argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
