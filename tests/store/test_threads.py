"""Readers, writers and event loops at the same time."""

import asyncio
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Vectors, Record, Searcher, Store, open_store, scoring
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.qdrant import QdrantStore
from m3_integrations.store.server import ServerStore
from m3_integrations.vectors import Kind, Mode, MultiVectorRows
from tests.fakes import FakeEncoder, random_vectors
from tests.store.conftest import OpenStore
from tests.store.oracle import add, records, vectors


def read_and_write(store: Store, seconds: float) -> int:
    """Eight readers and one writer: what never changes is found with its right scores throughout; gives the reads."""
    random = np.random.default_rng(0)
    kept, queries = records(random, [f"kept{i}" for i in range(50)]), vectors(random, 20)
    moving = records(random, [f"moving{i}" for i in range(30)])
    add(store, kept)
    everything = M3Vectors.concatenate([record.vectors for record in kept if record.vectors is not None])
    end, done = time.monotonic() + seconds, threading.Event()

    def write() -> int:
        i = 0
        while time.monotonic() < end:
            add(store, moving[i % 30 : i % 30 + 3])
            store.delete([moving[(i * 7) % 30].id])
            if i % 50 == 49:
                store.optimize()
            i += 1
        done.set()
        return 0

    def read(worker: int) -> int:
        i = 0
        while not done.is_set():
            query = queries[(worker + i) % 20]
            hits = store.candidates(query, {"dense": 80, "lexical": 80})
            assert {record.id for record in kept} <= set(hits["dense"].ids)
            ids, scores = store.scores(query, [record.id for record in kept], ["multi_vector"])
            assert ids == [record.id for record in kept]
            expected = scoring.max_sim(query.multi_vector[0], everything.multi_vector)
            np.testing.assert_allclose(scores["multi_vector"], expected, atol=1e-5)
            i += 1
        return i

    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(write), *(pool.submit(read, worker) for worker in range(8))]
    return sum(future.result() for future in futures)


def test_readers_of_a_new_store_see_nothing_or_its_first_records(store: Store, random: np.random.Generator) -> None:
    is_done = threading.Event()
    first = records(random, ["a", "b"])

    def read() -> set[int]:
        counts = {store.count()}
        while not is_done.is_set():
            counts.add(store.count())
        return counts

    with ThreadPoolExecutor(1) as pool:
        counts = pool.submit(read)
        try:
            add(store, first)
        finally:
            is_done.set()
        # On a cluster the two may be in different shards.
        assert counts.result() <= ({0, 1, 2} if isinstance(store, ServerStore) and store.url != "local" else {0, 2})
    assert store.count() == 2


def test_of_two_first_records_of_other_sizes_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_checked = threading.Barrier(2)
    create = QdrantStore._create

    def create_late(store: QdrantStore, sizes: Mapping[Mode, int]) -> None:
        both_checked.wait(timeout=60)
        create(store, sizes)

    monkeypatch.setattr(QdrantStore, "_create", create_late)
    sizes = [Record(str(d), "", {}, M3Vectors(dense=np.eye(1, d, dtype=np.float32))) for d in (4, 6)]
    with EdgeStore(tmp_path / "s") as store, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(add, store, [record]) for record in sizes]
        (error,) = [error for future in futures if (error := future.exception()) is not None]
        assert isinstance(error, ValueError)
        assert "dense vectors of length" in str(error)
        assert store.count() == 1


@pytest.mark.parametrize("kind", ["memory", "folder", pytest.param("server", marks=pytest.mark.server)])
def test_eight_readers_and_a_writer_never_see_a_wrong_result(kind: str, open_kind: OpenStore) -> None:
    assert read_and_write(open_kind(kind), 3) > 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_eight_readers_and_a_writer_for_a_minute(kind: str, open_kind: OpenStore) -> None:
    assert read_and_write(open_kind(kind), 60) > 8


async def test_a_loop_goes_on_while_records_are_added_and_searched(tmp_path: Path) -> None:
    encoder = FakeEncoder()
    texts = [f"{i} " + "word " * 60 for i in range(300)]
    with open_store(tmp_path / "s") as store:
        searcher = Searcher(encoder, store)
        await searcher.aadd(["first"], ids=["first"])
        adding = asyncio.create_task(searcher.aadd(texts))
        searches = 0
        while not adding.done():
            (hit,) = await searcher.asearch("first", k=1, mode="dense", score_threshold=-1.0)
            assert hit.id
            searches += 1
        assert len(await adding) == 300
        assert searches > 5  # none had to wait for the end
        assert store.count() == 301


def test_batches_are_small_outside_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    many = random_vectors(random, 40, tokens=750)  # 40 of about 0.1 MB
    sizes: list[int] = []
    with open_store(tmp_path / "s") as store:
        assert isinstance(store, EdgeStore)
        write = store._write

        def measured(points: list[Any], *rest: Any) -> None:
            sizes.append(len(points))
            write(points, *rest)

        monkeypatch.setattr(store, "_write", measured)
        made = records(random, [f"r{i}" for i in range(40)])
        added = [replace(record, vectors=many[i]) for i, record in enumerate(made)]
        add(store, added)
        assert sizes == [40]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(add, store, added).result()
        assert len(sizes) > 4
        assert sum(sizes) == 80


class HalfEncoder(FakeEncoder):
    """Its token vectors lose nothing as float16, so that no two texts change places by rounding alone."""

    def _vectors(self, texts: Sequence[str], kind: Kind) -> M3Vectors:
        made = super()._vectors(texts, kind)
        flat = made.multi_vector.flat.astype(np.float16).astype(np.float32)
        rows = MultiVectorRows(made.multi_vector.offsets, flat)
        return M3Vectors(dense=made.dense, lexical=made.lexical, multi_vector=rows)


def test_the_same_program_gives_the_same_ids_in_the_same_order_on_all_stores(open_kind: OpenStore) -> None:
    kinds = ["memory", "folder", "local", *(["server"] if os.environ.get("QDRANT_URL") else [])]
    outcomes = {}
    for kind in kinds:
        searcher = Searcher(HalfEncoder(), open_kind(kind))
        texts = [f"text number {i} about {'cats' if i % 3 else 'dogs'}" for i in range(120)]
        searcher.add(texts, ids=[f"id{i}" for i in range(120)], metadatas=[{"year": 2000 + i % 7} for i in range(120)])
        searcher.store.delete([f"id{i}" for i in range(0, 120, 11)])
        searcher.add(["a text of a new kind"], ids=["id5"], metadatas=[{"year": 1999}])
        found = []
        for mode in ("all", "dense", "lexical", "dense+lexical", "multi_vector"):
            for filter_ in (None, {"year": {"$gte": 2003}}):
                for fusion in ("weighted", "rrf"):
                    queries = ["which cats are new", "number 7"]
                    hits = searcher.search_batch(queries, k=10, mode=mode, filter=filter_, fusion=fusion)
                    found.append([[hit.id for hit in each] for each in hits])
        outcomes[kind] = found
    assert isinstance(open_kind("memory"), MemoryStore)
    for kind in kinds[1:]:
        assert outcomes[kind] == outcomes["memory"], kind
