"""Dense vectors that a folder also keeps with 8 bits a number: searches compare those, and lose nothing by it."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Vectors, Store, open_store
from m3_integrations.store import edge_config
from m3_integrations.vectors import FloatArray

N, DIM = 1200, 64


@pytest.fixture
def made() -> FloatArray:
    """N unit vectors in 8 topics, as near to each other as texts of one topic, and 400 more that replace some."""
    random = np.random.default_rng(3)
    rows = np.tile(random.standard_normal((8, DIM)), (200, 1)) + 0.3 * random.standard_normal((1600, DIM))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def put(store: Store, numbers: range, rows: FloatArray) -> None:
    n = len(numbers)
    store.upsert([str(i) for i in numbers], [""] * n, [{"tenth": i % 10} for i in numbers], M3Vectors(dense=rows))


def check(store: Store, alive: dict[str, FloatArray]) -> None:
    """The best 100 by the dense mode are those of float64, with exact scores."""
    ids, rows = np.array(list(alive)), np.stack(list(alive.values())).astype(float)
    for row in rows[:: len(rows) // 10]:
        found = store.candidates(M3Vectors(dense=row[None].astype(np.float32)), {"dense": 100})["dense"]
        scores = rows @ row
        best = np.argsort(-scores)[:100]
        assert set(found.ids) == set(ids[best].tolist())
        np.testing.assert_allclose(found.scores, scores[best], atol=1e-6)


def compressed(folder: Path) -> int:
    """The bytes of the vectors with 8 bits a number."""
    return sum(file.stat().st_size for file in folder.rglob("*") if "quantized_data" in file.parts)


def test_every_record_is_compared_after_replacing_deleting_and_opening_again(tmp_path: Path, made: FloatArray) -> None:
    alive = {str(i): row for i, row in enumerate(made[:N])}
    with open_store(tmp_path / "store") as store:
        put(store, range(N), made[:N])
        check(store, alive)
        put(store, range(400), made[N:])
        alive |= {str(i): row for i, row in enumerate(made[N:])}
        store.delete_where({"tenth": {"$in": [3, 4]}})
        alive = {id_: row for id_, row in alive.items() if int(id_) % 10 not in (3, 4)}
        check(store, alive)
    assert compressed(tmp_path / "store") >= N * DIM
    with open_store(tmp_path / "store") as store:
        check(store, alive)
        store.optimize()
        check(store, alive)


def test_an_older_store_is_searched_as_it_is_and_compressed_by_optimize(
    tmp_path: Path, made: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = {str(i): row for i, row in enumerate(made[:N])}
    with monkeypatch.context() as before, open_store(tmp_path / "store") as store:
        before.setattr(edge_config, "_COMPRESSED", None)
        put(store, range(N // 2), made[: N // 2])
    with open_store(tmp_path / "store") as store:
        put(store, range(N // 2, N), made[N // 2 : N])
        check(store, alive)
        assert compressed(tmp_path / "store") == 0
        store.optimize()
        check(store, alive)
    assert compressed(tmp_path / "store") >= N * DIM
