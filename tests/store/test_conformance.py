"""What every store does alike."""

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Vectors, Record, Store
from m3_integrations.store import parse_filter
from m3_integrations.store.protocol import Hits
from m3_integrations.vectors import MODES, LexicalRows, Mode, MultiVectorRows, offsets_of
from tests.fakes import TOKEN_DIM, random_vectors
from tests.store.oracle import add, brute_force, records, vectors
from tests.test_filters import random_filter


def test_it_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)
    assert (store.modes, store.kept_modes, store.fingerprint, store.count()) == ((), MODES, None, 0)


def test_records_come_back_in_the_order_asked_as_copies(store: Store, random: np.random.Generator) -> None:
    given = Record("a", "text", {"tags": ["x"], "at": 0.1 + 0.2, "big": 2**63}, vectors(random, 1))
    add(store, [given, *records(random, ["b", "c"])])
    first = store.get(["c", "absent", "a", "c"])
    assert [record.id for record in first] == ["c", "a", "c"]
    assert first[1].vectors is None
    first[1].metadata["tags"].append("changed")
    given.metadata["tags"].append("changed")
    (again,) = store.get(["a"], with_vectors=True)
    assert again.text == "text"
    assert again.metadata == {"tags": ["x"], "at": 0.1 + 0.2, "big": 2**63}
    assert again.vectors is not None
    assert given.vectors is not None
    np.testing.assert_array_equal(again.vectors.dense, given.vectors.dense)
    assert again.vectors.lexical[0].to_dict() == given.vectors.lexical[0].to_dict()
    np.testing.assert_array_equal(again.vectors.multi_vector[0], given.vectors.multi_vector[0])
    assert not again.is_pooled


def test_all_records_are_given_once(store: Store, random: np.random.Generator) -> None:
    assert list(store.records()) == []
    added = records(random, [f"r{i}" for i in range(300)])
    add(store, added)
    found = {record.id: (record.text, record.metadata) for record in store.records()}
    assert found == {record.id: (record.text, record.metadata) for record in added}
    assert len(list(store.records())) == 300


def test_any_number_of_ids_is_looked_up(store: Store, random: np.random.Generator) -> None:
    add(store, records(random, ["a", "b"]))
    ids = ["a", *(f"absent {i}" for i in range(2000)), "b"]  # more than an engine is asked for at once
    assert [record.id for record in store.get(ids)] == ["a", "b"]
    assert store.delete(ids) == 2
    assert store.count() == 0


def test_ids_of_a_generator_are_read_once(store: Store, random: np.random.Generator) -> None:
    add(store, records(random, ["a", "b"]))
    assert [record.id for record in store.get(id_ for id_ in ["b", "a"])] == ["b", "a"]  # type: ignore[arg-type]
    assert store.delete(id_ for id_ in ["a"]) == 1  # type: ignore[arg-type]
    assert [record.id for record in store.records()] == ["b"]


def test_a_record_pooled_elsewhere_stays_flagged(store: Store, random: np.random.Generator) -> None:
    store.upsert(["a", "b"], ["", ""], [{}, {}], vectors(random, 2), is_pooled=np.array([True, False]))
    assert [record.is_pooled for record in store.get(["a", "b"], with_vectors=True)] == [True, False]


def test_an_upsert_replaces_and_the_later_of_two_counts(store: Store, random: np.random.Generator) -> None:
    add(store, records(random, ["a", "b"]))
    one, two = records(random, ["a", "a"])
    add(store, [one, two])
    assert store.count() == 2
    query = random_vectors(random, 1)
    _, scores = store.scores(query, ["a"], ["dense"])
    assert two.vectors is not None
    assert scores["dense"] == pytest.approx(two.vectors.dense @ query.dense[0], abs=1e-6)


def test_legs_and_scores_equal_brute_force_under_random_changes_and_filters(
    store: Store, random: np.random.Generator
) -> None:
    alive: dict[str, Record] = {}
    for step in range(60):
        ids = [f"r{i}" for i in random.integers(0, 90, random.integers(1, 12))]
        if random.random() < 0.65:
            added = records(random, ids)
            add(store, added)
            alive.update({record.id: record for record in added})
        elif random.random() < 0.5:
            assert store.delete(ids) == len(alive.keys() & set(ids))
            alive = {id_: record for id_, record in alive.items() if id_ not in ids}
        else:
            filter_ = {"$and": [random_filter(random), {"size": {"$lt": 2}}]}
            gone = brute_force(alive, random_vectors(random, 1), filter_)["dense"]
            assert store.delete_where(filter_) == len(gone)
            alive = {id_: record for id_, record in alive.items() if id_ not in gone}
        if step % 20 == 19:
            store.optimize()
        query, filter_ = vectors(random, 1), random_filter(random)
        expected = brute_force(alive, query, filter_)
        assert store.count() == len(alive)
        assert store.count(parse_filter(filter_)) == len(expected["dense"]), filter_
        hits = store.candidates(query, {"dense": 10, "lexical": 7}, parse_filter(filter_))
        for mode, n in (("dense", 10), ("lexical", 7)):
            found, wanted = hits[mode], {i: s for i, s in expected[mode].items() if mode == "dense" or s > 0}  # type: ignore[index]
            np.testing.assert_allclose(found.scores, sorted(wanted.values(), reverse=True)[:n], atol=1e-5)
            np.testing.assert_allclose(found.scores, [wanted[id_] for id_ in found.ids], atol=1e-5)
        asked = [f"r{i}" for i in random.permutation(100)[:30]]
        found_ids, scores = store.scores(query, asked, MODES)
        assert found_ids == [id_ for id_ in asked if id_ in alive]
        every = brute_force(alive, query, {})
        for mode, values in scores.items():
            np.testing.assert_allclose(values, [every[mode][id_] for id_ in found_ids], atol=1e-5)
        assert_known_scores_change_nothing(store, query, hits, asked)


def assert_known_scores_change_nothing(
    store: Store, query: M3Vectors, hits: dict[Mode, Hits], others: Sequence[str]
) -> None:
    ids = list(dict.fromkeys([*hits["dense"].ids, *others, *hits["lexical"].ids]))
    subsets: list[list[Mode]] = [["dense"], ["lexical"], ["multi_vector"], ["lexical", "multi_vector"], list(MODES)]
    for modes in subsets:
        anew, wanted = store.scores(query, ids, modes)
        taken_over, found = store.scores(query, ids, modes, hits)
        assert taken_over == anew
        for mode in modes:
            np.testing.assert_allclose(found[mode], wanted[mode], rtol=1e-6, atol=1e-7)


def wide_vectors(random: np.random.Generator, n: int, tokens: int, dim: int = 1024) -> M3Vectors:
    """Vectors of BGE-M3's size."""
    dense, flat = random.normal(size=(n, dim)), random.normal(size=(n * tokens, dim))
    return M3Vectors(
        dense=(dense / np.linalg.norm(dense, axis=1, keepdims=True)).astype(np.float32),
        lexical=random_vectors(random, n, tokens).lexical,
        multi_vector=MultiVectorRows(
            offsets_of([tokens] * n), (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
        ),
    )


def test_at_bge_m3s_size_float16_costs_less_than_1e_4(store: Store, random: np.random.Generator) -> None:
    many = wide_vectors(random, 30, tokens=20)
    alive = {f"r{i}": Record(f"r{i}", "", {}, many[i]) for i in range(30)}
    add(store, list(alive.values()))
    for query in (wide_vectors(random, 1, tokens=12), many[3]):
        expected = brute_force(alive, query, {})
        ids, scores = store.scores(query, list(alive), MODES)
        for mode, values in scores.items():
            np.testing.assert_allclose(values, [expected[mode][id_] for id_ in ids], atol=1e-4)


AWKWARD: dict[str, Any] = {
    "a.b": 1,
    'quote"d[]': "x",
    "": "empty key",
    "ключ": "значение",
    "sum": 0.1 + 0.2,
    "tiny": 5e-324,
    "minus": -0.0,
    "list": [1, "1", True, None, [2], {"deep": 3}],
    "object": {"year": 2024},
    "long": "y" * 5000,
    "snowflake": 2**60 + 1,
}


AWKWARD_FILTERS: list[tuple[dict[str, Any], bool]] = [
    ({"a.b": 1}, True),
    ({"a": {"$exists": True}}, False),
    ({'quote"d[]': "x"}, True),
    ({"": "empty key"}, True),
    ({"ключ": "значение"}, True),
    ({"ключ": {"$gt": 0}}, False),
    ({"sum": 0.1 + 0.2}, True),
    ({"sum": 0.3}, False),
    ({"sum": {"$gt": 0.3}}, True),
    ({"sum": {"$lte": 0.3}}, False),
    ({"sum": {"$lte": 0.1 + 0.2}}, True),
    ({"tiny": {"$gt": 0}}, True),
    ({"tiny": 0}, False),
    ({"minus": {"$gte": 0.0}}, True),
    ({"minus": 0}, True),
    ({"minus": {"$lt": 0}}, False),
    ({"list": 1}, True),
    ({"list": "1"}, True),
    ({"list": True}, True),
    ({"list": 2}, False),
    ({"list": {"$gt": 1}}, False),
    ({"list": {"$lt": 2, "$gt": 0}}, True),
    ({"object": {"$exists": True}}, True),
    ({"object": "year"}, False),
    ({"year": 2024}, False),
    ({"long": "y" * 5000}, True),
    ({"long": "y" * 4999}, False),
    ({"snowflake": {"$gte": 2**53}}, True),
    ({"snowflake": {"$exists": True}}, True),
    ({"$or": [{"a.b": 2}, {"sum": {"$gt": 5}}]}, False),
    ({"$and": [{"a.b": {"$in": []}}]}, False),
    ({"$not": {"a.b": {"$in": []}}}, True),
    ({"$not": {"$and": [{}]}}, False),
    ({"$or": [{}, {"a.b": 2}]}, True),
]


def test_filters_are_exact_for_awkward_keys_and_values(store: Store, random: np.random.Generator) -> None:
    add(store, [Record("a", "", AWKWARD, random_vectors(random, 1))])
    found = [(filter_, store.count(parse_filter(filter_)) == 1) for filter_, _ in AWKWARD_FILTERS]
    assert found == AWKWARD_FILTERS


def test_a_store_keeps_to_one_model(store: Store, random: np.random.Generator) -> None:
    store.bind("one")
    add(store, records(random, ["a"]))
    store.bind("one")
    assert store.fingerprint == "one"
    with pytest.raises(ValueError, match="of the model one, not of two"):
        store.bind("two")
    assert store.count() == 1


def bad_columns(random: np.random.Generator) -> dict[str, tuple[dict[str, Any], str]]:
    """What is wrong with a call that adds "b" and "x"."""
    good = random_vectors(random, 2)
    dense, lexical, tokens = good.dense.copy(), good.lexical, good.multi_vector
    dense[1, 3] = np.nan
    two = np.array([0, 1, 2])
    heavy = LexicalRows(two, np.array([1, 1], np.int32), np.array([0.5, np.inf], np.float32))
    flat = np.ones((2, TOKEN_DIM), np.float32)
    flat[1, 0] = -np.inf
    wide = M3Vectors(dense=np.ones((2, 99), np.float32), lexical=lexical, multi_vector=tokens)
    return {
        "a text too few": ({"texts": ["one"]}, "got 2 ids and 1 texts"),
        "metadata too many": ({"metadatas": [{}, {}, {}]}, "got 2 ids and 3 metadatas"),
        "vectors of one text": ({"vectors": good[0]}, "got 2 ids and 1 vectors"),
        "vectors of three": ({"vectors": random_vectors(random, 3)}, "got 2 ids and 3 vectors"),
        "a flag too few": ({"is_pooled": np.array([True])}, "got 2 ids and 1 is_pooled"),
        "fewer modes": ({"vectors": good.select(["dense"])}, "has dense vectors, but the store has dense, lexical"),
        "another size": ({"vectors": wide}, "dense vectors of length 99, but the store has 8"),
        "not a number": (
            {"vectors": M3Vectors(dense=dense, lexical=lexical, multi_vector=tokens)},
            "dense vectors hold infinite or NaN values",
        ),
        "infinite weight": (
            {"vectors": M3Vectors(dense=good.dense, lexical=heavy, multi_vector=tokens)},
            "lexical vectors hold infinite or NaN values",
        ),
        "infinite token": (
            {"vectors": M3Vectors(dense=good.dense, lexical=lexical, multi_vector=MultiVectorRows(two, flat))},
            "multi_vector vectors hold infinite or NaN values",
        ),
    }


def test_a_bad_call_is_refused_and_nothing_of_it_is_added(store: Store, random: np.random.Generator) -> None:
    add(store, records(random, ["a"]))
    columns: dict[str, Any] = {
        "ids": ["b", "x"],
        "texts": ["", ""],
        "metadatas": [{}, {}],
        "vectors": random_vectors(random, 2),
    }
    for wrong, message in bad_columns(random).values():
        with pytest.raises(ValueError, match=message):
            store.upsert(**(columns | wrong))
        assert store.count() == 1
    for wrong in ({"ids": ["b", 7]}, {"texts": ["", None]}):
        with pytest.raises(TypeError, match="must be strings"):
            store.upsert(**(columns | wrong))
        assert store.count() == 1
    store.upsert(**columns)
    assert store.count() == 3


def test_an_upsert_of_nothing_is_nothing(store: Store, random: np.random.Generator) -> None:
    store.upsert([], [], [], random_vectors(random, 2)[:0])
    assert (store.count(), store.modes) == (0, ())


def test_what_the_caller_passed_is_not_changed(store: Store, random: np.random.Generator) -> None:
    given, flags, metadata = random_vectors(random, 2), np.array([True, False]), {"tags": ["x"]}
    copies = given[:]
    store.upsert(["a", "b"], ["one", "two"], [metadata, {}], given, is_pooled=flags)
    assert (metadata, flags.tolist()) == ({"tags": ["x"]}, [True, False])
    np.testing.assert_array_equal(given.dense, copies.dense)
    np.testing.assert_array_equal(given.multi_vector.flat, copies.multi_vector.flat)
    assert [record.is_pooled for record in store.get(["a", "b"])] == [True, False]


def test_a_query_that_does_not_fit_is_refused(store: Store, random: np.random.Generator) -> None:
    assert store.candidates(random_vectors(random, 1), {"dense": 3})["dense"].ids == []
    assert store.scores(random_vectors(random, 1), ["a"], ["dense"])[0] == []
    add(store, records(random, ["a"]))
    with pytest.raises(ValueError, match="one text, got 2"):
        store.candidates(random_vectors(random, 2), {"dense": 3})
    with pytest.raises(ValueError, match="length 3, but the store has 8"):
        store.scores(M3Vectors(dense=np.ones((1, 3), np.float32)), ["a"], ["dense"])
    with pytest.raises(ValueError, match="got multi_vector"):
        store.candidates(random_vectors(random, 1), {"multi_vector": 3})


def test_texts_without_tokens_are_stored_and_score_zero(store: Store, random: np.random.Generator) -> None:
    empty, full = random_vectors(random, 1, tokens=0), random_vectors(random, 1, tokens=5)
    add(store, [Record("empty", "", {}, empty), Record("full", "", {}, full)])
    ids, scores = store.scores(full, ["full", "empty"], MODES)
    assert ids == ["full", "empty"]
    assert [scores["lexical"][1], scores["multi_vector"][1]] == [0, 0]
    assert scores["multi_vector"][0] == pytest.approx(1, abs=1e-3)
    assert store.candidates(full, {"lexical": 9})["lexical"].ids == ["full"]
    _, of_nothing = store.scores(empty, ["full"], ["lexical", "multi_vector"])
    assert [*of_nothing["lexical"], *of_nothing["multi_vector"]] == [0, 0]
    assert store.candidates(empty, {"dense": 0, "lexical": 9})["lexical"].ids == []
    (back,) = store.get(["empty"], with_vectors=True)
    assert back.vectors is not None
    assert (len(back.vectors.lexical[0]), back.vectors.multi_vector[0].shape[0]) == (0, 0)


def test_a_store_of_some_modes_has_those(store: Store, random: np.random.Generator) -> None:
    vectors = random_vectors(random, 3).select(["lexical"])
    add(store, [Record(f"r{i}", "", {}, vectors[i]) for i in range(3)])
    assert store.modes == ("lexical",)
    assert store.scores(vectors[0], ["r2", "r0"], ["lexical"])[0] == ["r2", "r0"]
    (back,) = store.get(["r0"], with_vectors=True)
    assert back.vectors is not None
    assert back.vectors.modes == ("lexical",)
    with pytest.raises(ValueError, match="no dense vectors"):
        store.candidates(random_vectors(random, 1), {"dense": 3})


def test_a_closed_store_raises(store: Store, random: np.random.Generator) -> None:
    add(store, records(random, ["a"]))
    store.close()
    store.close()
    for use in (store.count, store.optimize, lambda: add(store, records(random, ["a"])), lambda: store.get(["a"])):
        with pytest.raises(RuntimeError, match="was closed"):
            use()


def test_a_store_of_this_process_cannot_be_pickled(store: Store) -> None:
    if store.__class__.__name__ in {"ServerStore", "ServedStore"}:
        pytest.skip("a store on a server can")
    with pytest.raises(TypeError, match="use a store on a server"):
        pickle.dumps(store)
