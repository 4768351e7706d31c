import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Vectors, Record, Store, open_store, scoring
from m3_integrations.store import matches, parse_filter
from m3_integrations.store.memory import MemoryStore
from m3_integrations.vectors import LexicalRows
from tests.fakes import random_vectors
from tests.test_filters import random_filter, random_metadata


def records(random: np.random.Generator, ids: list[str]) -> list[Record]:
    vectors = random_vectors(random, len(ids))
    return [Record(id_, f"text of {id_}", random_metadata(random), vectors[i]) for i, id_ in enumerate(ids)]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_it_is_a_store_and_open_store_gives_it() -> None:
    assert isinstance(open_store(), MemoryStore)
    assert isinstance(open_store(None), Store)


def test_records_come_back_in_the_order_asked_as_copies(random: np.random.Generator) -> None:
    with open_store() as store:
        given = Record("a", "text", {"tags": ["x"]}, random_vectors(random, 1))
        store.upsert([given, *records(random, ["b", "c"])])
        first = store.get(["c", "absent", "a"])
        assert [record.id for record in first] == ["c", "a"]
        assert first[1].vectors is None
        first[1].metadata["tags"].append("changed")
        given.metadata["tags"].append("changed")
        (again,) = store.get(["a"], with_vectors=True)
        assert again.metadata == {"tags": ["x"]}
        assert again.vectors is not None
        np.testing.assert_array_equal(again.vectors.dense, given.vectors.dense)  # type: ignore[union-attr]


def test_an_upsert_replaces_and_the_later_of_two_counts(random: np.random.Generator) -> None:
    store = open_store()
    store.upsert(records(random, ["a", "b"]))
    one, two = records(random, ["a", "a"])
    store.upsert([one, two])
    assert store.count() == 2
    query = random_vectors(random, 1)
    _, scores = store.scores(query, ["a"], ["dense"])
    assert two.vectors is not None
    assert scores["dense"] == pytest.approx(two.vectors.dense @ query.dense[0])


def brute_force(store: MemoryStore, query: M3Vectors, filter_: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Every matching record's score in every mode, in float64 and without the store's own arrays."""
    result: dict[str, dict[str, float]] = {"dense": {}, "lexical": {}, "multi_vector": {}}
    of_query = query.lexical[0].to_dict()
    everything = store.get([record.id for record in store.records()], with_vectors=True)
    for record in everything:
        if not matches(parse_filter(filter_), record.metadata):
            continue
        assert record.vectors is not None
        vectors = record.vectors
        weights = vectors.lexical[0].to_dict()
        tokens, others = query.multi_vector[0].astype(float), vectors.multi_vector[0].astype(float)
        result["dense"][record.id] = float(query.dense[0].astype(float) @ vectors.dense[0].astype(float))
        result["lexical"][record.id] = sum(of_query[t] * weights[t] for t in of_query.keys() & weights.keys())
        result["multi_vector"][record.id] = float((tokens @ others.T).max(axis=1).mean())
    return result


def test_legs_and_scores_equal_brute_force_under_random_changes_and_filters(random: np.random.Generator) -> None:
    store = MemoryStore()
    alive: set[str] = set()
    for step in range(120):
        ids = [f"r{i}" for i in random.integers(0, 90, random.integers(1, 12))]
        if random.random() < 0.65:
            store.upsert(records(random, ids))
            alive.update(ids)
        elif random.random() < 0.5:
            assert store.delete(ids) == len(alive & set(ids))
            alive.difference_update(ids)
        else:
            filter_ = {"$and": [random_filter(random), {"size": {"$lt": 2}}]}
            gone = set(brute_force(store, random_vectors(random, 1), filter_)["dense"])
            assert store.delete_where(parse_filter(filter_)) == len(gone)  # type: ignore[arg-type]
            alive.difference_update(gone)
        if step % 40 == 39:
            store.optimize()
        query, filter_ = random_vectors(random, 1), random_filter(random)
        expected = brute_force(store, query, filter_)
        assert store.count() == len(alive)
        assert store.count(parse_filter(filter_)) == len(expected["dense"])
        hits = store.candidates(query, {"dense": 10, "lexical": 7}, parse_filter(filter_))
        for mode, n in (("dense", 10), ("lexical", 7)):
            found, wanted = hits[mode], {i: s for i, s in expected[mode].items() if mode == "dense" or s > 0}  # type: ignore[index]
            np.testing.assert_allclose(found.scores, sorted(wanted.values(), reverse=True)[:n], atol=1e-5)
            np.testing.assert_allclose(found.scores, [wanted[id_] for id_ in found.ids], atol=1e-5)
        asked = [f"r{i}" for i in random.permutation(100)[:30]]
        found_ids, scores = store.scores(query, asked, ["dense", "lexical", "multi_vector"])
        assert found_ids == [id_ for id_ in asked if id_ in alive]
        every = brute_force(store, query, {})
        for mode, values in scores.items():
            np.testing.assert_allclose(values, [every[mode][id_] for id_ in found_ids], atol=1e-5)


def test_blocks_stay_few_when_records_come_one_by_one(random: np.random.Generator) -> None:
    store = MemoryStore()
    for record in records(random, [f"r{i}" for i in range(300)]):
        store.upsert([record])
    assert len(store._segments) <= 9  # about the binary logarithm
    store.delete([f"r{i}" for i in range(290)])
    assert sum(len(segment.rows) for segment in store._segments) <= 20


def test_a_store_keeps_to_one_model(random: np.random.Generator) -> None:
    store = open_store()
    store.bind("one")
    store.bind("one")
    with pytest.raises(ValueError, match="of the model one, not of two"):
        store.bind("two")


def bad_records(random: np.random.Generator) -> dict[str, tuple[Record, str]]:
    vectors = random_vectors(random, 1)
    wide = M3Vectors(dense=np.ones((1, 99), np.float32), lexical=vectors.lexical, multi_vector=vectors.multi_vector)
    nan = M3Vectors(
        dense=np.full_like(vectors.dense, np.nan), lexical=vectors.lexical, multi_vector=vectors.multi_vector
    )
    inf = M3Vectors(
        dense=vectors.dense,
        lexical=LexicalRows(np.array([0, 1]), np.array([1], np.int32), np.array([np.inf], np.float32)),
        multi_vector=vectors.multi_vector,
    )
    return {
        "no vectors": (Record("x", ""), "needs the vectors of one text"),
        "two texts": (Record("x", "", {}, random_vectors(random, 2)), "needs the vectors of one text"),
        "fewer modes": (Record("x", "", {}, vectors.select(["dense"])), "has dense vectors, the store dense, lexical"),
        "another size": (Record("x", "", {}, wide), "dense vectors of length 99, the store of length 8"),
        "not a number": (Record("x", "", {}, nan), "dense vectors hold values that are not finite"),
        "infinite weight": (Record("x", "", {}, inf), "lexical vectors hold values that are not finite"),
    }


def test_a_bad_record_is_refused_and_nothing_of_its_call_is_added(random: np.random.Generator) -> None:
    store = open_store()
    store.upsert(records(random, ["a"]))
    for bad, message in bad_records(random).values():
        with pytest.raises(ValueError, match=message):
            store.upsert([*records(random, ["b"]), bad])
        assert store.count() == 1
    with pytest.raises(TypeError, match="must be strings"):
        store.upsert([Record(7, "text", {}, random_vectors(random, 1))])  # type: ignore[arg-type]


def test_a_query_that_does_not_fit_is_refused(random: np.random.Generator) -> None:
    store = open_store()
    assert store.candidates(random_vectors(random, 1), {"dense": 3})["dense"].ids == []
    store.upsert(records(random, ["a"]))
    with pytest.raises(ValueError, match="one text, got 2"):
        store.candidates(random_vectors(random, 2), {"dense": 3})
    with pytest.raises(ValueError, match="length 3, the store of length 8"):
        store.scores(M3Vectors(dense=np.ones((1, 3), np.float32)), ["a"], ["dense"])
    with pytest.raises(ValueError, match="not by multi_vector"):
        store.candidates(random_vectors(random, 1), {"multi_vector": 3})


def test_equal_scores_keep_the_order_of_insertion(random: np.random.Generator) -> None:
    vectors, store = random_vectors(random, 1), open_store()
    store.upsert([Record(id_, "", {}, vectors) for id_ in "dbca"])
    assert store.candidates(vectors, {"dense": 3, "lexical": 3})["dense"].ids == ["d", "b", "c"]


def test_a_closed_store_raises_and_an_open_one_cannot_be_pickled(random: np.random.Generator) -> None:
    store = open_store()
    with pytest.raises(TypeError, match="use a server store"):
        pickle.dumps(store)
    store.close()
    for use in (store.count, store.optimize, lambda: store.upsert(records(random, ["a"])), lambda: store.get(["a"])):
        with pytest.raises(RuntimeError, match="was closed"):
            use()


def test_other_engines_are_refused_until_they_exist() -> None:
    with pytest.raises(NotImplementedError, match="in memory"):
        open_store("./folder")  # type: ignore[arg-type]


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
