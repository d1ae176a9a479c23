"""README is short, and all pages use the terms of the glossary."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_docs import PAGES, read


OLD_WORDS = ("plain training", "plain `Trainer`", "anew", "held against", "tells of", "fast-only")


def found_in(text: str) -> list[str]:
    """Words of the old dialect in a text, also where a line ends within one."""
    flowing = " ".join(text.split()).lower()
    return [word for word in OLD_WORDS if re.search(rf"(?<!\w){re.escape(word.lower())}", flowing)]


@pytest.mark.parametrize("page", PAGES)
def test_no_page_uses_words_of_the_old_dialect(page: str) -> None:
    assert found_in(read(page)) == []


def test_an_old_word_is_found() -> None:
    assert found_in("as in plain\ntraining, Anew") == ["plain training", "anew"]


def test_readme_has_at_most_110_lines() -> None:
    assert len(read("README.md").splitlines()) <= 110


def test_the_glossary_is_in_alphabetical_order() -> None:
    terms = re.findall(r"^(\w[^\n]*)\n:   ", read("docs/concepts.md"), flags=re.MULTILINE)
    assert len(terms) > 20
    assert terms == sorted(terms)
