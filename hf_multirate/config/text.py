"""Names that a user has given, as text: in a line, in a label, in Markdown."""

from __future__ import annotations

import re


SHORT = 48
"""Characters of a label in a picture."""


def one_line(name: str) -> str:
    r"""``name`` without line breaks, and without characters that act on a terminal instead of being shown.

    >>> one_line("two\nlines \x1b[31m")
    'two lines [31m'
    """
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())


def shortened(name: str, most: int = SHORT) -> str:
    """``name`` in one line of at most ``most`` characters.

    >>> shortened("encoder.layer", 8)
    'encoder…'
    """
    line = one_line(name)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def markdown(name: str) -> str:
    """``name`` as a cell of a table in Markdown: no letter of it is markup, and no part of it a link.

    >>> markdown("block_0 | *x*")
    'block_0 &#124; &#42;x&#42;'
    """
    line = re.sub(r"[^\w .,()/=+-]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"&#{ord(found[0])};", one_line(name))
    return line.replace("www.", "www&#46;")
