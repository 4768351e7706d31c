"""What a store in a folder takes, and what another way to keep token vectors would make of it."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import open_store
from m3_integrations.store.edge_size import DiskUse, disk_use, smaller_storages, token_vector_bytes
from m3_integrations.store.points import MultiVectorStorage
from m3_integrations.vectors import LexicalRows, M3Vectors, MultiVectorRows, offsets_of


def made(folder: Path, storage: MultiVectorStorage, dim: int) -> DiskUse:
    """A store of 60 records of 200 token vectors, closed."""
    random = np.random.default_rng(0)
    lengths = [200] * 60
    vectors = M3Vectors(
        dense=random.standard_normal((60, dim)).astype(np.float32),
        lexical=LexicalRows(offsets_of([1] * 60), np.arange(60, dtype=np.int32), np.ones(60, np.float32)),
        multi_vector=MultiVectorRows(offsets_of(lengths), random.standard_normal((12_000, dim)).astype(np.float32)),
    )
    with open_store(folder, multi_vector=storage) as store:
        store.upsert([f"r{i}" for i in range(60)], ["text"] * 60, [{}] * 60, vectors)
    return disk_use(folder)


@pytest.mark.parametrize("dim", [32, 256])
def test_estimates_are_what_such_stores_really_take(disk_path: Path, dim: int) -> None:
    whole = made(disk_path / "float16", "float16", dim)
    kept = token_vector_bytes("float16", dim)
    assert kept == 2 * dim
    assert abs(whole.token_bytes - 12_000 * kept) < 40_000
    for storage in smaller_storages("float16"):
        real = made(disk_path / storage, storage, dim)
        estimated = whole.with_token_vectors(token_vector_bytes(storage, dim) / kept)
        assert abs(real.size_bytes - estimated) < 60_000
        assert abs(real.token_bytes - 12_000 * token_vector_bytes(storage, dim)) < 40_000


def test_bytes_of_a_token_vector_and_the_storages_below() -> None:
    assert [token_vector_bytes(each, 1024) for each in ("none", "float16", "turbo8", "turbo4")] == [0, 2048, 1028, 516]
    assert smaller_storages("float16") == ["turbo8", "turbo4", "none"]
    assert smaller_storages("turbo8") == ["turbo4", "none"]
    assert smaller_storages("none") == []
    assert DiskUse(100, 80).with_token_vectors(0.5) == 60


def test_holes_and_the_log_take_nothing(tmp_path: Path) -> None:
    wal = tmp_path / "engine" / "wal"
    wal.mkdir(parents=True)
    (wal / "open-1").write_bytes(b"x" * 50_000)
    with (tmp_path / "engine" / "holes").open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(1 << 20)
    assert disk_use(tmp_path).size_bytes == pytest.approx(8192, abs=4096)
