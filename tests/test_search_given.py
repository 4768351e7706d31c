"""Searching by a dense vector or among records that the caller gives, and choosing what is unlike."""

from typing import Any

import numpy as np
import pytest

from m3_integrations import ModeWeights, Searcher, open_store, scoring
from m3_integrations.vectors import FloatArray
from tests.fakes import DIM, FakeEncoder
from tests.test_scoring import brute_force
from tests.test_search import make_searcher, make_texts

QUERY = "keys vault tea"


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def filled(random: np.random.Generator) -> Searcher:
    return make_searcher(random)


@pytest.fixture
def dense(random: np.random.Generator) -> FloatArray:
    return random.normal(size=DIM).astype(np.float32)


def expected(searcher: Searcher, dense: FloatArray | None, weights: ModeWeights) -> dict[str, float]:
    """All records' scores, best first."""
    records = searcher.store.get([f"d{i:02}" for i in range(80)], with_vectors=True)
    query = searcher.encoder.encode([QUERY], kind="query")
    unit = None if dense is None else dense / np.linalg.norm(dense)
    final: dict[str, float] = {}
    for record in records:
        assert record.vectors is not None
        raw = {mode: values[0] for mode, values in brute_force(query, record.vectors).items()}
        if unit is not None:
            raw["dense"] = float(unit @ record.vectors.dense[0])
        final[record.id] = sum(part * raw[mode] for mode, part in weights.normalized().items())
    return dict(sorted(final.items(), key=lambda item: (-item[1], item[0])))


async def test_a_given_dense_vector_takes_the_place_of_the_querys(filled: Searcher, dense: FloatArray) -> None:
    ranked = expected(filled, dense, ModeWeights())
    variants: list[Any] = [dense, dense * 100, dense.astype(np.float64)]
    for given in variants:
        for hits in (filled.search(QUERY, dense=given, k=9), await filled.asearch(QUERY, dense=given, k=9)):
            assert [hit.id for hit in hits] == list(ranked)[:9]
            assert [hit.score for hit in hits] == pytest.approx(list(ranked.values())[:9], abs=1e-5)


async def test_a_dense_vector_alone_ranks_by_itself(filled: Searcher, dense: FloatArray) -> None:
    encoder = filled.encoder
    assert isinstance(encoder, FakeEncoder)
    encoder.encoded.clear()
    ranked = expected(filled, dense, ModeWeights(1, 0, 0))
    encoder.encoded.clear()
    for mode in ("all", "lexical", "dense"):
        asked: dict[str, Any] = {"mode": mode, "k": 9, "bm25": "extra"}
        for hits in (filled.search(None, dense=dense, **asked), await filled.asearch(None, dense=dense, **asked)):
            assert [hit.id for hit in hits] == list(ranked)[:9]
            assert [set(hit.scores) for hit in hits] == [{"dense"}] * 9
    assert encoder.encoded == []


def test_a_dense_vector_is_of_no_use_to_the_lexical_mode(filled: Searcher, dense: FloatArray) -> None:
    asked: dict[str, Any] = {"mode": "lexical", "k": 99}
    assert filled.search(QUERY, dense=dense, **asked) == filled.search(QUERY, **asked)


def test_a_dense_vector_of_zeros_is_like_nothing(filled: Searcher) -> None:
    assert {hit.score for hit in filled.search(None, dense=np.zeros(DIM, np.float32), k=99)} == {0.0}


async def test_a_dense_vector_that_is_none_is_refused(filled: Searcher) -> None:
    bad = [np.ones(DIM + 1, np.float32), np.ones((1, DIM), np.float32), np.full(DIM, np.nan, np.float32)]
    for searcher in (filled, Searcher(FakeEncoder(), open_store())):
        for dense in bad:
            with pytest.raises(ValueError, match="must be 8 finite numbers"):
                searcher.search(QUERY, dense=dense)
        with pytest.raises(TypeError, match="got neither"):
            searcher.search(None)
        with pytest.raises(TypeError, match="got neither"):
            await searcher.asearch(None)


async def test_given_records_are_the_candidates(filled: Searcher, random: np.random.Generator) -> None:
    ranked = expected(filled, None, ModeWeights())
    some = [f"d{i:02}" for i in random.permutation(80)[:30]]
    of_some = [id_ for id_ in ranked if id_ in some]
    given = [*some, "nobody", some[0]]
    for hits in (filled.search(QUERY, ids=given, k=99), await filled.asearch(QUERY, ids=given, k=99)):
        assert [hit.id for hit in hits] == of_some
    assert [hit.id for hit in filled.search(QUERY, ids=given, k=3, pool_size=1)] == of_some[:3]
    lexical = filled.search(QUERY, ids=given, mode="lexical", k=99)
    assert lexical == [hit for hit in filled.search(QUERY, mode="lexical", k=99, pool_size=99) if hit.id in some]
    assert 0 < len(lexical) < 30
    for nothing in ([], ["nobody"]):
        assert filled.search(QUERY, ids=nothing) == []
    with pytest.raises(ValueError, match="pass bm25='off' with ids="):
        filled.search(QUERY, ids=given, bm25="extra")


def test_given_records_have_to_match_the_filter_too(random: np.random.Generator) -> None:
    searcher = Searcher(FakeEncoder(), open_store())
    searcher.add(make_texts(random, 9), ids=list("abcdefghi"), metadatas=[{"n": n} for n in range(9)])
    hits = searcher.search(QUERY, ids=list("abcdx"), filter={"n": {"$gte": 2}}, k=9)
    assert sorted(hit.id for hit in hits) == ["c", "d"]


def test_diversity_trades_relevance_against_likeness_to_what_was_chosen() -> None:
    """By hand: two documents that are alike, one at a right angle to them, and one between."""
    documents = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    relevance = np.array([0.9, 0.8, 0.1, 0.5], np.float32)
    assert scoring.diverse_rows(relevance, documents, 4, 1.0) == [0, 1, 3, 2]
    assert scoring.diverse_rows(relevance, documents, 2, 0.0) == [0, 2]
    # Second: 0.5 * 0.8 - 0.5 * 1, 0.5 * 0.1 - 0, 0.5 * 0.5 - 0.5 * 0.6; third: -0.1, 0.25 - 0.5 * max(0.6, 0.8).
    assert scoring.diverse_rows(relevance, documents, 4, 0.5) == [0, 2, 1, 3]
    assert scoring.diverse_rows(relevance, documents, 0, 0.5) == []
    assert scoring.diverse_rows(relevance[:0], documents[:0], 3, 0.5) == []


def test_diversity_does_not_depend_on_how_a_store_rounds(random: np.random.Generator) -> None:
    """The query's vector is the first document's, so that with a trade-off of 0.5 every other score is 0."""
    documents = random.normal(size=(9, 32)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    relevance = scoring.dense_scores(documents[0], documents)
    relevance[1:] = -np.sort(-relevance[1:])
    documents[1:] = documents[1:][np.argsort(-scoring.dense_scores(documents[0], documents[1:]))]
    for _ in range(20):
        rounded = relevance + random.normal(scale=3e-8, size=9).astype(np.float32)
        assert scoring.diverse_rows(rounded, documents, 2, 0.5) == [0, 1]
