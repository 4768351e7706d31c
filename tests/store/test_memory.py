import numpy as np
import pytest

from m3_integrations import Record, Store, open_store
from m3_integrations.store import memory
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import MODES
from tests.fakes import random_vectors
from tests.store.oracle import add, brute_force, records


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


def test_what_is_added_at_once_is_kept_without_a_copy(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, one, given = MemoryStore(), random_vectors(random, 1), random_vectors(random, 50)
    store.upsert(["first"], [""], [{}], one)
    monkeypatch.setattr(memory, "_MERGED_BYTES", given.nbytes)  # the two together are more
    store.upsert([f"r{i}" for i in range(50)], [""] * 50, [{}] * 50, given)
    block = store._blocks[-1].vectors
    assert np.shares_memory(block.dense, given.dense)
    assert np.shares_memory(block.lexical.values, given.lexical.values)
    assert np.shares_memory(block.multi_vector.flat, given.multi_vector.flat)
    store.optimize()
    assert [len(block.rows) for block in store._blocks] == [51]


def test_no_block_is_merged_beyond_a_quarter_of_everything(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MERGED_BYTES", 10_000)
    store, alive = MemoryStore(), dict[str, Record]()
    for i in range(60):
        added = records(random, [f"r{i}_{n}" for n in range(20)])
        add(store, added)
        store.delete([f"r{i}_0"])
        alive |= {record.id: record for record in added[1:]}
    sizes = [block.size_bytes for block in store._blocks]
    assert 10_000 < max(sizes) <= sum(sizes) / 4
    assert len(sizes) <= 20
    query = random_vectors(random, 1)
    expected = brute_force(alive, query, {})
    ids, scores = store.scores(query, list(alive), MODES)
    for mode, values in scores.items():
        np.testing.assert_allclose(values, [expected[mode][id_] for id_ in ids], atol=1e-5)


def test_equal_scores_keep_the_order_of_insertion(random: np.random.Generator) -> None:
    vectors, store = random_vectors(random, 1), open_store()
    add(store, [Record(id_, "", {}, vectors) for id_ in "dbca"])
    assert store.candidates(vectors, {"dense": 3, "lexical": 3})["dense"].ids == ["d", "b", "c"]


@pytest.mark.parametrize("change", ["delete", "replace"])
def test_what_changes_during_a_search_is_searched_as_it_is_afterwards(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    store, there = MemoryStore(), records(random, [f"r{i}" for i in range(20)])
    add(store, there)
    query = random_vectors(random, 1)
    first, *others = store.candidates(query, {"dense": 20})["dense"].ids
    best, changed = memory._best, list[str]()

    def change_first(*given: object) -> object:
        if not changed:  # the lock is free, so that another thread could do this
            changed.append(first)
            if change == "delete":
                store.delete([first])
            else:
                add(store, [record for record in there if record.id == first])
        return best(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "_best", change_first)
    found = store.candidates(query, {"dense": 5})["dense"].ids
    assert found == (others[:5] if change == "delete" else [first, *others[:4]])
