"""Scores from 0 to 1, and results that differ from one another."""

from typing import Any

import numpy as np
import pytest
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from m3_integrations import Hit, ModeWeights, Searcher, SearchOptions, open_store
from m3_integrations.search import diverse_hits, relevance
from tests.fakes import FakeEncoder
from tests.test_search import make_texts


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def filled(random: np.random.Generator) -> Searcher:
    searcher = Searcher(FakeEncoder(), open_store())
    searcher.add(make_texts(random, 80), ids=[f"d{i:02}" for i in range(80)])
    return searcher


def hit(score: float, **scores: float) -> Hit:
    return Hit("id", "text", {}, score, scores)


def test_a_relevance_is_what_the_formula_says() -> None:
    """Worked by hand."""
    dense, every = SearchOptions(mode="dense"), SearchOptions()
    assert [relevance(hit(s, dense=s), dense) for s in (-1, 0, 0.5, 1)] == [0, 0.5, 0.75, 1]
    lexical = SearchOptions(mode="lexical")
    assert [relevance(hit(s, lexical=s), lexical) for s in (0, 0.25, 1, 7)] == [0, 0.25, 1, 1]
    three = {"dense": 0.0, "lexical": 0.0, "multi_vector": 0.0}
    scores = [relevance(hit(s, **three), every) for s in (-2 / 3, 0, 1 / 6, 1, 3)]
    assert scores == pytest.approx([0, 0.4, 0.5, 1, 1])
    weighted = SearchOptions(weights=ModeWeights(1, 3, 0))
    assert relevance(hit(0.5, **three), weighted) == pytest.approx(0.75 / 1.25)
    # Without multi-vectors in the store the weights are shared by the other two.
    assert relevance(hit(0.5, dense=0.0, lexical=0.0), every) == pytest.approx(1 / 1.5)
    assert relevance(hit(-1.0000001, dense=-1.0), dense) == 0
    fused = SearchOptions(fusion="rrf", rrf_k=9)
    assert relevance(hit(0.1, **three), fused) == pytest.approx(1)
    assert relevance(hit(0.025, **three), fused) == pytest.approx(0.25)


@pytest.mark.parametrize("fusion", ["weighted", "rrf"])
@pytest.mark.parametrize("bm25", ["off", "extra", "replace"])
@pytest.mark.parametrize("mode", ["dense", "lexical", "dense+lexical", "multi_vector", "all"])
def test_relevance_lies_between_0_and_1_and_never_contradicts_the_ranking(
    filled: Searcher, random: np.random.Generator, mode: Any, bm25: Any, fusion: Any
) -> None:
    for query in make_texts(random, 4):
        weights = ModeWeights(*random.uniform(0, 1, 3))
        options = SearchOptions(mode=mode, bm25=bm25, fusion=fusion, k=80, weights=weights)
        hits = filled.with_options(options).search(query)
        found = [relevance(each, options) for each in hits]
        assert all(0 <= each <= 1 for each in found)
        assert found == sorted(found, reverse=True)
        below = [(each.score, value) for each, value in zip(hits, found, strict=True) if value < 1]
        assert len({score for score, _ in below}) == len({value for _, value in below})


@pytest.mark.parametrize("bm25", ["off", "extra", "replace"])
@pytest.mark.parametrize("mode", ["dense", "all"])
def test_the_first_of_every_ranking_has_relevance_1_under_rrf(mode: Any, bm25: Any) -> None:
    searcher = Searcher(FakeEncoder(), open_store())
    # BM25 counts a word as rare only if fewer than half of the texts have it.
    searcher.add(["green tea", "rain", "a train", "the museum", "night"])
    options = SearchOptions(mode=mode, bm25=bm25, fusion="rrf")
    (first, *_) = searcher.with_options(options).search("green tea")
    assert first.text == "green tea"
    assert relevance(first, options) == pytest.approx(1)


@pytest.mark.parametrize("trade_off", [0.1, 0.5, 0.9, 1.0])
def test_diversity_is_that_of_langchain(filled: Searcher, random: np.random.Generator, trade_off: float) -> None:
    for query in make_texts(random, 5):
        hits = filled.search(query, k=20)
        dense = filled.encoder.encode([query], kind="query").dense[0]
        records = filled.store.get([each.id for each in hits], with_vectors=True)
        vectors = [record.vectors.dense[0].tolist() for record in records if record.vectors]
        expected = maximal_marginal_relevance(dense, vectors, lambda_mult=trade_off, k=6)
        assert diverse_hits(filled.store, hits, 6, trade_off) == [hits[row] for row in expected]


def test_diversity_needs_the_dense_mode_and_a_trade_off_in_range(filled: Searcher) -> None:
    hits = filled.search("keys", k=5)
    for trade_off in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            diverse_hits(filled.store, hits, 3, trade_off)
    with pytest.raises(ValueError, match="ranked by dense vectors"):
        diverse_hits(filled.store, filled.search("keys", mode="multi_vector"), 3, 0.5)
    assert diverse_hits(filled.store, [], 3, 0.5) == []


def test_a_result_that_was_deleted_meanwhile_is_left_out(filled: Searcher) -> None:
    hits = filled.search("keys", k=5)
    filled.store.delete([hits[0].id])
    assert {each.id for each in diverse_hits(filled.store, hits, 5, 0.5)} == {each.id for each in hits[1:]}
