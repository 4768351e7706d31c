"""What may be asked of a search, and reranking beside it."""

from typing import Any, get_type_hints

import numpy as np
import pytest

from m3_integrations import ModeWeights, Searcher, SearchOptions
from m3_integrations.search import OPTION_NAMES, CalibrationLike, SearchKeywords, rerank
from m3_integrations.store import FilterLike
from m3_integrations.vectors import WeightsLike
from tests.fakes import FakeEncoder
from tests.test_scoring import brute_force
from tests.test_search import make_searcher


@pytest.fixture
def filled() -> Searcher:
    return make_searcher(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2.5}, TypeError, "k must be an integer, got 2.5"),
        ({"k": True}, TypeError, "k must be an integer"),
        ({"pool_size": 0}, ValueError, "pool_size must be at least 1"),
        ({"rrf_k": -1}, ValueError, "rrf_k must be at least 0"),
        ({"mode": "hybrid"}, ValueError, "mode must be one of dense, lexical, dense\\+lexical, multi_vector, all"),
        ({"fusion": "max"}, ValueError, "fusion must be one of weighted, rrf, got 'max'"),
        ({"bm25": "yes"}, ValueError, "bm25 must be one of off, extra, replace"),
        ({"weights": "best"}, ValueError, "unknown weights 'best'"),
        ({"weights": (1, 1)}, TypeError, "weights must be ModeWeights"),
        ({"score_threshold": float("nan")}, ValueError, "must be finite"),
        ({"score_threshold": "0.5"}, TypeError, "score_threshold must be a number, got '0.5'"),
        ({"score_threshold": True}, TypeError, "score_threshold must be a number, got True"),
        ({"min_probability": "high"}, TypeError, "min_probability must be a number, got 'high'"),
        ({"score_threshold": np.array([0.1, 0.2])}, TypeError, "score_threshold must be a number"),
        ({"score_threshold": 10**400}, TypeError, "score_threshold must be a number"),
        ({"min_probability": [1]}, TypeError, "min_probability must be a number"),
        ({"k": 2**64}, ValueError, f"k must be at most {2**63 - 1}, got {2**64}"),
        ({"pool_size": 2**63}, ValueError, "pool_size must be at most"),
        ({"rrf_k": 10**400}, ValueError, "rrf_k must be at most"),
        ({"filter": {"a": {"$near": 1}}}, ValueError, "unknown"),
        ({"filter": "a = 1"}, TypeError, "must be a mapping"),
    ],
)
def test_options_out_of_range_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchOptions(**settings)


@pytest.mark.parametrize("integer", [np.int64, np.uint8, int])
def test_any_whole_number_counts_and_becomes_a_plain_one(integer: type) -> None:
    options = SearchOptions(k=integer(3), pool_size=integer(7), rrf_k=integer(0))
    assert (options.k, options.pool_size, options.rrf_k) == (3, 7, 0)
    assert {type(options.k), type(options.pool_size), type(options.rrf_k)} == {int}
    assert type(SearchOptions(score_threshold=np.float32(0.5)).score_threshold) is float  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="k must be an integer"):
        SearchOptions(k=np.bool_(True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"), [("n_results", "k"), ("filters", "filter"), ("weigths", "weights"), ("zzz", None)]
)
def test_an_unknown_option_is_answered_with_the_one_that_may_be_meant(name: str, meant: str | None) -> None:
    asked: dict[str, Any] = {name: 1}
    with pytest.raises(TypeError, match=f"did you mean {meant}. It has k" if meant else "option zzz: it has k, mode"):
        SearchOptions(**asked)


def test_an_option_that_does_not_exist_is_refused(filled: Searcher) -> None:
    for unknown in ({"top_k": 3}, {"top_k": None}):
        for refused in (lambda asked: filled.search("a", **asked), lambda asked: SearchOptions(**asked)):
            with pytest.raises(TypeError, match=r"a search has no option top_k: did you mean k\? It has k, mode"):
                refused(unknown)


def test_the_keywords_of_a_call_are_the_options() -> None:
    """Written once for checkers and once with defaults and checks: the two agree in every name and type."""
    keywords, options = get_type_hints(SearchKeywords), get_type_hints(SearchOptions)
    assert set(keywords) == set(options) == set(OPTION_NAMES)
    accepted = options | {
        "weights": WeightsLike,
        "filter": FilterLike,
        "calibration": CalibrationLike,
    }  # an option of these holds what was parsed
    assert {name: hint | None for name, hint in accepted.items()} == keywords
    assert SearchOptions() == SearchOptions(**dict.fromkeys(OPTION_NAMES))
    assert {name: getattr(SearchOptions, name) for name in OPTION_NAMES} == {
        name: getattr(SearchOptions(), name) for name in OPTION_NAMES
    }


async def test_a_searcher_has_options_of_its_own(filled: Searcher) -> None:
    """None in a call means the searcher's option, the filter {} means no filter."""
    settled = Searcher(filled.encoder, filled.store, SearchOptions(k=7, mode="dense", filter={"size": {"$gte": 3}}))
    whole: dict[str, Any] = {"k": 7, "mode": "dense", "filter": {"size": {"$gte": 3}}}
    nothing: dict[str, Any] = dict.fromkeys(OPTION_NAMES)
    asked: dict[str, Any]
    for asked in ({}, nothing, {"k": 3}, {"filter": {}}, {**nothing, "mode": "all", "filter": {"color": "red"}}):
        expected = filled.search("keys", **{**whole, **{name: a for name, a in asked.items() if a is not None}})
        assert settled.search("keys", **asked) == await settled.asearch("keys", **asked) == expected
        assert settled.search_batch(["keys"], **asked) == [expected]
    assert len(settled.search("keys", filter={}, k=99)) > len(settled.search("keys", k=99)) > 0
    other = settled.with_options(SearchOptions(k=2))
    assert other.search("keys") == filled.search("keys", k=2)
    assert settled.search("keys") == filled.search("keys", **whole)


def test_reranking_takes_stored_vectors_and_encodes_only_the_others(filled: Searcher) -> None:
    encoder = filled.encoder
    assert isinstance(encoder, FakeEncoder)
    stored = {record.id: record.text for record in filled.store.get(["d05", "d01"])}
    texts = ["a new text", stored["d05"], "changed since", stored["d01"], stored["d05"]]
    ids = [None, "d05", "d01", "d01", "unknown"]
    expected = rerank(encoder, "keys", texts, weights="miracl")
    encoder.encoded.clear()
    ranked = rerank(encoder, "keys", texts, ids=ids, store=filled.store, weights="miracl")
    assert [text for kind, text in encoder.encoded if kind == "document"] == ["a new text", "changed since", texts[4]]
    assert [each.row for each in ranked] == [each.row for each in expected]
    for one, other in zip(ranked, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.scores == pytest.approx(other.scores, abs=1e-6)


def test_reranking_is_by_the_weighted_mean_of_the_exact_scores(filled: Searcher) -> None:
    encoder, texts = filled.encoder, ["keys vault", "blue tea", "keys vault", "rain"]
    raw = brute_force(encoder.encode(["keys"], kind="query"), encoder.encode(texts))
    parts = ModeWeights.preset("miracl").normalized()
    scores = [sum(parts[mode] * raw[mode][row] for mode in parts) for row in range(4)]
    order = sorted(range(4), key=lambda row: -scores[row])
    ranked = rerank(encoder, "keys", texts, weights="miracl")
    assert [each.row for each in ranked] == order  # of two equal texts the first comes first
    assert [each.score for each in ranked] == pytest.approx([scores[row] for row in order], abs=1e-5)
    for each in ranked:
        assert each.scores == pytest.approx({mode: raw[mode][each.row] for mode in parts}, abs=1e-5)
    assert rerank(encoder, "keys", texts, weights="miracl", top_n=2) == ranked[:2]
    assert rerank(encoder, "keys", texts, weights="miracl", score_threshold=ranked[1].score) == ranked[:2]
    assert rerank(encoder, "keys", texts, weights="miracl", top_n=2, score_threshold=9.0) == []


def test_reranking_refuses_what_does_not_fit(filled: Searcher) -> None:
    with pytest.raises(ValueError, match="got 1 texts and 2 ids"):
        rerank(filled.encoder, "q", ["a"], ids=["x", "y"], store=filled.store)
    assert rerank(filled.encoder, "q", []) == []
