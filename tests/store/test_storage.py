"""How token vectors are kept, and what searching makes of it."""

import asyncio
from typing import Any

import numpy as np
import pytest

from m3_integrations import Record, Searcher
from m3_integrations.vectors import MultiVectorRows, offsets_of
from m3_integrations.vectors.pooling import group_starts, pool_tokens, pooled_lengths
from tests.fakes import FakeEncoder, random_vectors
from tests.store.conftest import OpenStore
from tests.store.oracle import add
from tests.store.test_conformance import wide_vectors


def test_pooling_takes_means_of_neighbours_at_unit_length() -> None:
    rows = MultiVectorRows(
        offsets_of([3, 0, 2]), np.array([[1, 0], [0, 1], [0, 1], [0.6, 0.8], [-0.6, -0.8]], np.float32)
    )
    lengths = pooled_lengths(rows.lengths, np.array([2, 2, 2]), 100)
    assert lengths.tolist() == [2, 0, 1]
    pooled = pool_tokens(rows, lengths)
    np.testing.assert_allclose(pooled[0], [[1, 0], [0, 1]], atol=1e-7)
    assert pooled[1].shape == (0, 2)
    np.testing.assert_allclose(pooled[2], [[0, 0]], atol=1e-7)  # they cancel each other out
    assert pooled_lengths(np.array([10, 3]), np.array([1, 1]), 4).tolist() == [4, 3]
    assert group_starts(10, 4).tolist() == [0, 2, 5, 7]


@pytest.mark.parametrize(("multi_vector", "tolerance"), [("float16", 1e-4), ("turbo8", 3e-3), ("turbo4", 3e-2)])
def test_compressed_token_vectors_score_nearly_the_same(
    multi_vector: Any, tolerance: float, open_kind: OpenStore, random: np.random.Generator
) -> None:
    store = open_kind("folder", multi_vector=multi_vector)
    many, query = wide_vectors(random, 20, tokens=20), wide_vectors(random, 1, tokens=10)
    add(store, [Record(f"r{i}", "", {}, many[i]) for i in range(20)])
    _, scores = store.scores(query, [f"r{i}" for i in range(20)], ["multi_vector"])
    exact = [(query.multi_vector[0] @ tokens.T).max(axis=1).mean() for tokens in many.multi_vector]
    assert np.abs(scores["multi_vector"] - exact).max() < tolerance


@pytest.mark.parametrize("multi_vector", ["turbo8", "turbo4"])
def test_compressed_token_vectors_that_are_read_and_stored_again_stay_the_same(
    multi_vector: Any, open_kind: OpenStore, random: np.random.Generator
) -> None:
    store = open_kind("folder", multi_vector=multi_vector)
    query, three, ids = wide_vectors(random, 1, tokens=10), wide_vectors(random, 3, tokens=20), ["a", "b", "c"]
    add(store, [Record(id_, "", {}, three[i]) for i, id_ in enumerate(ids)])
    first, scores = store.get(ids, with_vectors=True), store.scores(query, ids, ["multi_vector"])[1]
    for _ in range(20):
        add(store, store.get(ids, with_vectors=True))
    for record, again in zip(first, store.get(ids, with_vectors=True), strict=True):
        assert record.vectors is not None
        assert again.vectors is not None
        np.testing.assert_allclose(again.vectors.multi_vector[0], record.vectors.multi_vector[0], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(record.vectors.multi_vector[0], axis=1), 1, atol=1e-6)
    again_scored = store.scores(query, ids, ["multi_vector"])[1]
    np.testing.assert_allclose(again_scored["multi_vector"], scores["multi_vector"], atol=1e-6)


@pytest.mark.parametrize("kind", ["folder", "local"])
def test_without_multi_vectors_all_modes_are_dense_and_lexical(kind: str, open_kind: OpenStore) -> None:
    encoder = FakeEncoder()
    with Searcher(encoder, open_kind(kind, multi_vector="none")) as searcher:
        searcher.add(["a text of five words", "another"], ids=["a", "b"])
        assert searcher.store.modes == searcher.store.kept_modes == ("dense", "lexical")
        both = searcher.search("a text", mode="dense+lexical")
        assert [(hit.id, hit.score) for hit in searcher.search("a text")] == [(hit.id, hit.score) for hit in both]
        assert set(both[0].scores) == {"dense", "lexical"}
        with pytest.raises(ValueError, match=r"only dense, lexical vectors; M3Rerank after this search"):
            searcher.search("a text", mode="multi_vector")


def test_vectors_that_are_not_kept_are_not_computed(open_kind: OpenStore) -> None:
    asked: list[Any] = []

    class Watched(FakeEncoder):
        def encode_batches(self, texts: Any, *, modes: Any = None, show_progress: bool = False) -> Any:
            asked.append(modes)
            return super().encode_batches(texts, modes=modes)

    searcher = Searcher(Watched(), open_kind("folder", multi_vector="none"))
    searcher.add(["text"])
    asyncio.run(searcher.aadd(["more"]))
    assert asked == [("dense", "lexical")] * 2


def test_a_record_of_token_vectors_alone_is_refused_where_none_are_kept(
    open_kind: OpenStore, random: np.random.Generator
) -> None:
    store = open_kind("folder", multi_vector="none")
    with pytest.raises(ValueError, match="the records have only multi_vector"):
        add(store, [Record("a", "", {}, random_vectors(random, 1).select(["multi_vector"]))])


def test_an_explanation_names_the_tokens_that_a_pooled_vector_stands_for(open_kind: OpenStore) -> None:
    encoder = FakeEncoder()
    whole, pooled = Searcher(encoder, open_kind("memory")), Searcher(encoder, open_kind("folder", token_pooling=2))
    for searcher in (whole, pooled):
        searcher.add(["one two three four five"], ids=["a"])
    documents = {pair.document_token for pair in pooled.explain("two words more", "a").multi_vector}
    assert documents <= {"onetwo", "threefour", "five</s>"}
    assert {pair.document_token for pair in whole.explain("two words more", "a").multi_vector} <= {
        "one", "two", "three", "four", "five", "</s>"
    }  # fmt: skip
    (_, scores) = pooled.store.scores(encoder.encode(["two words more"], kind="query"), ["a"], ["multi_vector"])
    assert pooled.explain("two words more", "a").scores["multi_vector"] == pytest.approx(
        float(scores["multi_vector"][0]), abs=1e-3
    )
