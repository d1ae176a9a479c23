"""Formatting of user-given names: on one line, as a label, in Markdown."""

from __future__ import annotations

import re


LABEL_LENGTH = 48
"""Maximum number of characters of a label in a chart."""


def one_line(name: str) -> str:
    r"""``name`` without line breaks and control characters.

    >>> one_line("two\nlines \x1b[31m")
    'two lines [31m'
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def shortened(name: str, length: int = LABEL_LENGTH) -> str:
    """``name`` on one line of at most ``length`` characters.

    >>> shortened("encoder.layer", 8)
    'encoder…'
    """
    line = one_line(name)
    return line if len(line) <= length else f"{line[: length - 1]}…"


def markdown(name: str) -> str:
    """``name`` as a cell of a Markdown table, with all markup and links escaped.

    >>> markdown("block_0 | *x*")
    'block_0 &#124; &#42;x&#42;'
    """
    line = re.sub(r"[^\w .,()/=+-]|(?<![^\W_])_|_(?![^\W_])", lambda match: f"&#{ord(match[0])};", one_line(name))
    return line.replace("www.", "www&#46;")
