"""Where the activation cache keeps rows: bounds, sharing, and folders that cannot be used."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_multirate import MultirateConfig
from hf_multirate.backward.activation_store import OVERHEAD, ActivationStore, MemoryStore
from hf_multirate.backward.activation_store_disk import DiskStore
from tests.backward.test_activation_cache import WIDTH, attach, batch_of, counts, model_of, rows_of, train


MODEL = {"name": "a model", "fingerprint": "0123456789"}
MEGABYTE = 1_000_000


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def disk(folder: Path, limit: float = 50 * MEGABYTE, model: dict[str, str] = MODEL) -> DiskStore:
    return DiskStore(str(folder), limit, model)


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made: ActivationStore = MemoryStore(50 * MEGABYTE) if request.param == "memory" else disk(tmp_path / "cache")
    yield made
    made.close()


ROWS: list[Tensor] = [
    torch.randn(3, 4), torch.randn(5, 4).bfloat16(), torch.randn(2, 3, 2).half(), torch.randn(1).double(),
    torch.zeros(0, 4), torch.randn(4, 6).t(),
]  # fmt: skip


def test_rows_come_back_as_they_were(store: ActivationStore) -> None:
    store.put((key(i), row) for i, row in enumerate(ROWS))
    found = store.get([key(i) for i in range(len(ROWS) + 1)])
    assert found.pop() is None
    for row, other in zip(ROWS, found, strict=True):
        assert other is not None
        assert row.dtype == other.dtype
        assert torch.equal(row, other)
    assert store.rows == len(ROWS)
    assert store.size > 0


def test_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    row = torch.zeros(1000)
    store = MemoryStore(3 * (4000 + OVERHEAD) + 1)
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        for i in range(6):
            store.put([(key(i), row)])
    assert (store.rows, store.full) == (3, True)
    assert [found is not None for found in store.get([key(i) for i in range(6)])] == [True] * 3 + [False] * 3
    assert caplog.text.count("the activation cache in memory is full with 3 rows") == 1


def test_a_view_does_not_keep_its_batch() -> None:
    batch = torch.zeros(100, 10)
    store = MemoryStore(MEGABYTE)
    store.put([(key(0), batch[0])])
    kept = store.get([key(0)])[0]
    assert kept is not None
    assert kept.untyped_storage().nbytes() == 40


def test_disk_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = disk(tmp_path, 2 * MEGABYTE)
    with caplog.at_level(logging.WARNING, "hf_multirate"):
        for i in range(40):
            store.put([(key(i), torch.zeros(25_000))])
    assert store.full
    assert 5 < store.rows < 20
    assert store.size <= 2.1 * MEGABYTE
    assert "is full with" in caplog.text
    assert "Raise activation_cache_gb" in caplog.text
    store.close()
    again = disk(tmp_path, 2 * MEGABYTE)
    assert again.get([key(0)])[0] is not None
    again.close()


def test_no_space_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"only 1e-06 GB left\. Lower activation_cache_gb"):
        disk(tmp_path / "cache")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot use the folder '.*file' .*activation_cache_dir"):
        disk(tmp_path / "file")


def test_a_damaged_database(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="cannot use the folder"):
        disk(tmp_path)


def test_a_damaged_row_counts_as_missing(tmp_path: Path) -> None:
    store = disk(tmp_path)
    store.put([(key(0), torch.ones(100)), (key(1), torch.ones(100) * 2)])
    store.close()
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    place = data.find(torch.ones(100).numpy().tobytes())
    data[place + 10] ^= 1
    (tmp_path / "data.mdb").write_bytes(data)
    again = disk(tmp_path)
    assert [found is None for found in again.get([key(0), key(1)])] == [True, False]
    again.close()


def test_another_model(tmp_path: Path) -> None:
    disk(tmp_path).close()
    with pytest.raises(ValueError, match=r"belongs to another model: a model \(01234567\), this one is .*delete this"):
        disk(tmp_path, model={"name": "b", "fingerprint": "9"})


WRITER = """
import sys, torch
from hf_multirate.backward.activation_store_disk import DiskStore
store = DiskStore(sys.argv[1], 50e6, {model})
for i in range(200):
    number = int(sys.argv[2]) * 100 + i
    store.put([(number.to_bytes(16, "big"), torch.full((50,), float(number)))])
store.close()
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    code = WRITER.replace("{model}", repr(MODEL))
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)]) for i in range(2)]
    assert [process.wait() for process in started] == [0, 0]
    store = disk(tmp_path)
    assert store.rows == 300
    for number, row in enumerate(store.get([key(i) for i in range(300)])):
        assert row is not None
        assert torch.equal(row, torch.full((50,), float(number)))
    store.close()


def test_a_second_run_begins_with_the_rows_of_the_first(tmp_path: Path) -> None:
    config = MultirateConfig.off(activation_cache="disk", activation_cache_dir=str(tmp_path), activation_cache_gb=0.05)
    padded = batch_of(rows_of("bert", 4), WIDTH)
    whole = {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}
    first, one = train(model_of("bert"), [whole, whole], config)
    second, other = train(model_of("bert"), [whole, whole], config)
    assert (counts(one), counts(other)) == ((4, 4), (8, 0))
    assert first == second
    # The first batch with padding runs, as it shows that the loss does not read padding.
    first, one = train(model_of("bert"), [padded] * 3, config)
    second, other = train(model_of("bert"), [padded] * 3, config)
    assert (counts(one), counts(other)) == ((8, 4), (8, 4))
    assert one.activation_cache is not None
    assert other.activation_cache is not None
    assert one.activation_cache.summary()["rows"] == other.activation_cache.summary()["rows"] == 8
    assert first == second
    changed = model_of("bert")
    with torch.no_grad():
        changed.bert.encoder.layer[0].output.dense.bias.add_(1.0)
    with pytest.raises(ValueError, match=r"belongs to another model: BertModel up to bert\.encoder\.layer\.2"):
        attach(changed, config)
    changed = model_of("bert")
    with torch.no_grad():  # above the boundary
        changed.bert.encoder.layer[3].output.dense.bias.add_(1.0)
    attach(changed, config).detach()


def test_a_custom_loop_names_the_folder() -> None:
    with pytest.raises(ValueError, match="needs a folder in a custom training loop"):
        attach(model_of("bert"), MultirateConfig.off(activation_cache="disk"))


def test_fingerprints_are_plain_text(tmp_path: Path) -> None:
    store = disk(tmp_path)
    with store._environment.begin() as transaction:
        assert json.loads(transaction.get(b"model")) == MODEL
    store.close()
