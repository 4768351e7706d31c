from concurrent.futures import ThreadPoolExecutor

import numpy as np

from m3_integrations import M3Vectors, Record, Store, open_store, scoring
from m3_integrations.store.memory import MemoryStore
from tests.fakes import random_vectors
from tests.store.oracle import records


def test_it_is_a_store_and_open_store_gives_it() -> None:
    assert isinstance(open_store(), MemoryStore)
    assert isinstance(open_store(None), Store)


def test_blocks_stay_few_when_records_come_one_by_one(random: np.random.Generator) -> None:
    store = MemoryStore()
    for record in records(random, [f"r{i}" for i in range(300)]):
        store.upsert([record])
    assert len(store._segments) <= 9  # about the binary logarithm
    store.delete([f"r{i}" for i in range(290)])
    assert sum(len(segment.rows) for segment in store._segments) <= 20


def test_equal_scores_keep_the_order_of_insertion(random: np.random.Generator) -> None:
    vectors, store = random_vectors(random, 1), open_store()
    store.upsert([Record(id_, "", {}, vectors) for id_ in "dbca"])
    assert store.candidates(vectors, {"dense": 3, "lexical": 3})["dense"].ids == ["d", "b", "c"]


def test_readers_and_a_writer_never_see_a_wrong_result(random: np.random.Generator) -> None:
    store, queries = open_store(), random_vectors(random, 20)
    kept = records(random, [f"kept{i}" for i in range(50)])
    store.upsert(kept)
    everything = M3Vectors.concatenate([record.vectors for record in kept if record.vectors is not None])
    moving = records(random, [f"moving{i}" for i in range(30)])

    def write(_: int) -> None:
        for i in range(60):
            store.upsert(moving[i % 30 : i % 30 + 3])
            store.delete([moving[(i * 7) % 30].id])

    def read(worker: int) -> None:
        for i in range(60):
            query = queries[(worker + i) % 20]
            hits = store.candidates(query, {"dense": 80, "lexical": 80})
            assert {record.id for record in kept} <= set(hits["dense"].ids)
            _, scores = store.scores(query, [record.id for record in kept], ["multi_vector"])
            expected = scoring.max_sim(query.multi_vector[0], everything.multi_vector)
            np.testing.assert_allclose(scores["multi_vector"], expected, atol=1e-5)

    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(write, 0), *(pool.submit(read, worker) for worker in range(8))]
    for future in futures:
        future.result()
