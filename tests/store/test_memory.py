import numpy as np

from m3_integrations import Record, Store, open_store
from m3_integrations.store.memory import MemoryStore
from tests.fakes import random_vectors
from tests.store.oracle import add, records


def test_it_is_a_store_and_open_store_gives_it() -> None:
    assert isinstance(open_store(), MemoryStore)
    assert isinstance(open_store(None), Store)


def test_blocks_stay_few_when_records_come_one_by_one(random: np.random.Generator) -> None:
    store = MemoryStore()
    for record in records(random, [f"r{i}" for i in range(300)]):
        add(store, [record])
    assert len(store._blocks) <= 9  # about the binary logarithm
    store.delete([f"r{i}" for i in range(290)])
    assert sum(len(block.rows) for block in store._blocks) <= 20


def test_equal_scores_keep_the_order_of_insertion(random: np.random.Generator) -> None:
    vectors, store = random_vectors(random, 1), open_store()
    add(store, [Record(id_, "", {}, vectors) for id_ in "dbca"])
    assert store.candidates(vectors, {"dense": 3, "lexical": 3})["dense"].ids == ["d", "b", "c"]
