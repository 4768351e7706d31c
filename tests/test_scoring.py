import tracemalloc

import numpy as np
import pytest

from m3_integrations import LexicalWeights, M3Vectors, ModeWeights, scoring
from m3_integrations.vectors import FloatArray, LexicalRows, MultiVectorRows, offsets_of
from tests.fakes import lexical_of_tokens


def unit(*rows: tuple[float, ...]) -> FloatArray:
    array = np.array(rows, np.float32)
    normalized: FloatArray = (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)
    return normalized


def rows_of(*texts: FloatArray) -> MultiVectorRows:
    return MultiVectorRows(offsets_of([len(text) for text in texts]), np.concatenate(texts))


def lexical(weights: dict[int, float]) -> LexicalWeights:
    order = sorted(weights)
    return LexicalWeights(np.array(order, np.int32), np.array([weights[i] for i in order], np.float32))


def random_vectors(random: np.random.Generator, n: int, dim: int = 8, vocabulary: int = 30) -> M3Vectors:
    """Texts of 0 to 12 tokens; some share tokens, some have none."""
    dense = random.normal(size=(n, dim))
    lengths = random.integers(0, 13, n)
    flat = random.normal(size=(int(lengths.sum()), dim))
    rows = np.repeat(np.arange(n), lengths)
    ids = random.integers(0, vocabulary, len(rows))
    return M3Vectors(
        dense=(dense / np.linalg.norm(dense, axis=1, keepdims=True)).astype(np.float32),
        lexical=lexical_of_tokens(rows, ids, random.normal(size=len(rows)).astype(np.float32), n),
        multi_vector=MultiVectorRows(
            offsets_of(lengths), (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)
        ),
    )


def brute_force(query: M3Vectors, documents: M3Vectors) -> dict[str, list[float]]:
    """The formulas as the paper prints them, in float64 and one pair at a time."""
    result: dict[str, list[float]] = {"dense": [], "lexical": [], "multi_vector": []}
    of_query = query.lexical[0].to_dict()
    tokens = query.multi_vector[0].astype(np.float64)
    for i in range(len(documents)):
        result["dense"].append(float(query.dense[0].astype(np.float64) @ documents.dense[i].astype(np.float64)))
        of_document = documents.lexical[i].to_dict()
        result["lexical"].append(sum(of_query[t] * of_document[t] for t in of_query.keys() & of_document.keys()))
        others = documents.multi_vector[i].astype(np.float64)
        best = (tokens @ others.T).max(axis=1) if len(tokens) and len(others) else np.zeros(1)
        result["multi_vector"].append(float(best.mean()))
    return result


def test_max_sim_is_the_mean_of_each_query_tokens_best_match() -> None:
    query = unit((1, 0), (0, 1))
    documents = rows_of(unit((1, 0)), unit((1, 0), (0, 1)), unit((3, 4)), unit((-1, 0)))
    assert scoring.max_sim(query, documents) == pytest.approx([0.5, 1.0, 0.7, -0.5])


def test_max_sim_of_a_text_without_tokens_is_zero() -> None:
    nothing = np.empty((0, 2), np.float32)
    documents = rows_of(unit((-1, 0)), nothing, unit((0, 1)), nothing)
    assert scoring.max_sim(unit((1, 0)), documents).tolist() == [-1, 0, 0, 0]
    assert scoring.max_sim(nothing, documents).tolist() == [0, 0, 0, 0]
    assert scoring.max_sim(unit((1, 0)), rows_of(nothing)).tolist() == [0]


def test_lexical_score_sums_products_over_shared_tokens() -> None:
    query = lexical({2: 0.5, 5: 2.0, 9: 1.0})
    documents = LexicalRows.from_weights([lexical({5: 3.0}), lexical({}), lexical({2: 4.0, 9: 0.25, 11: 7.0})])
    assert scoring.lexical_scores(query, documents).tolist() == [6.0, 0.0, 2.25]
    assert scoring.lexical_scores(lexical({}), documents).tolist() == [0, 0, 0]
    assert scoring.lexical_scores(lexical({99: 1.0}), documents).tolist() == [0, 0, 0]


def test_combined_scores_go_from_minus_one_and_over_one() -> None:
    """The range that the docstrings state: cosines are in [-1, 1], and a sum of products has no upper bound."""
    opposite = np.array([-1], np.float32)
    assert scoring.combine({"dense": opposite, "multi_vector": opposite}, ModeWeights()).tolist() == [-1]
    heavy = lexical({0: 2, 1: 2, 2: 2})
    rows = LexicalRows(offsets_of([3]), heavy.indices, heavy.values)
    assert scoring.combine({"lexical": scoring.lexical_scores(heavy, rows)}, ModeWeights()).tolist() == [12]


def test_combined_is_the_weighted_mean_and_absent_modes_are_dropped_first() -> None:
    scores = {"dense": np.array([0.5], np.float32), "lexical": np.array([2.0], np.float32)}
    assert scoring.combine(scores, ModeWeights(1, 3, 96)).tolist() == [1.625]  # type: ignore[arg-type]


def test_scores_equal_float64_brute_force_on_random_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    monkeypatch.setattr(scoring, "_MIN_STEP", 1)
    for trial in range(60):
        # Tiny sizes cut the documents and the products in every possible way.
        monkeypatch.setattr(scoring, "_BLOCK_SIZE", int(random.integers(1, 200)))
        monkeypatch.setattr(scoring, "_UNTHREADED_SIZE", int(random.integers(1, 400)))
        monkeypatch.setattr(scoring, "_THREADED_SIZE", int(random.integers(400, 2000)))
        query, documents = random_vectors(random, 1), random_vectors(random, int(random.integers(1, 40)))
        weights = ModeWeights(*random.uniform(0.1, 2, 3))
        scores, expected = scoring.score_vectors(query, documents, weights), brute_force(query, documents)
        combined = np.zeros(len(documents))
        for mode, weight in weights.normalized().items():
            np.testing.assert_allclose(getattr(scores, mode), expected[mode], atol=1e-5, err_msg=f"{trial} {mode}")
            combined += weight * np.array(expected[mode])
        np.testing.assert_allclose(scores.combined, combined, atol=1e-5)


@pytest.mark.parametrize(
    ("n_queries", "n_documents", "n_pairs"),
    [(5, 9, 50), (1, 30, 40), (2, 30, 200), (30, 2, 40), (20, 200, 15), (3, 3, 0)],
    ids=["many of few", "one query", "few queries", "few documents", "far apart", "none"],
)
def test_scoring_pairs_equals_float64_brute_force(
    monkeypatch: pytest.MonkeyPatch, n_queries: int, n_documents: int, n_pairs: int
) -> None:
    random = np.random.default_rng(2)
    for block_size in (1, 60, 1 << 22):
        monkeypatch.setattr(scoring, "_BLOCK_SIZE", block_size)
        queries, documents = random_vectors(random, n_queries), random_vectors(random, n_documents)
        of_query, of_document = random.integers(0, n_queries, n_pairs), random.integers(0, n_documents, n_pairs)
        scores = scoring.score_pairs(queries, documents, of_query, of_document, ModeWeights(1, 2, 3))
        for i, (query, document) in enumerate(zip(of_query.tolist(), of_document.tolist(), strict=True)):
            expected = {mode: values[0] for mode, values in brute_force(queries[query], documents[document]).items()}
            for mode in scores.modes:
                assert getattr(scores, mode)[i] == pytest.approx(expected[mode], abs=1e-6), mode
            combined = (expected["dense"] + 2 * expected["lexical"] + 3 * expected["multi_vector"]) / 6
            assert scores.combined[i] == pytest.approx(combined, abs=1e-6)
        assert len(scores) == n_pairs


def test_neighbouring_documents_of_two_queries_are_scored_for_their_own() -> None:
    random = np.random.default_rng(6)
    queries, documents = random_vectors(random, 2), random_vectors(random, 20)
    scores = scoring.score_pairs(queries, documents, np.repeat([0, 1], 10), np.arange(20))
    expected = [brute_force(queries[i], documents)["multi_vector"] for i in range(2)]
    np.testing.assert_allclose(scores.multi_vector, expected[0][:10] + expected[1][10:], atol=1e-6)


def test_max_sim_holds_few_similarities_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_SIZE", 1 << 16)
    query, tokens = np.ones((32, 4), np.float32), np.ones((100_000, 4), np.float32)
    documents = MultiVectorRows(offsets_of([50] * 2000), tokens)  # 13 MB of similarities
    tracemalloc.start()
    scores = scoring.max_sim(query, documents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores.tolist() == [4.0] * 2000
    assert peak < 2_000_000


def test_documents_may_be_chosen_in_any_order_and_more_than_once() -> None:
    random = np.random.default_rng(5)
    query, documents = random_vectors(random, 1), random_vectors(random, 20)
    rows = random.integers(0, 20, 60)
    expected = brute_force(query, documents)
    for mode, scores in scoring.raw_scores(query, documents, ["dense", "lexical", "multi_vector"], rows).items():
        np.testing.assert_allclose(scores, np.array(expected[mode])[rows], atol=1e-6, err_msg=mode)


def test_only_shared_modes_are_scored() -> None:
    random = np.random.default_rng(3)
    query, documents = random_vectors(random, 1), random_vectors(random, 4)
    scores = scoring.score_vectors(query.select(["dense", "lexical"]), documents.select(["dense", "multi_vector"]))
    assert scores.modes == ("dense",)
    assert scores.combined.tolist() == scores.dense.tolist()


def test_more_than_one_query_is_refused() -> None:
    vectors = random_vectors(np.random.default_rng(4), 2)
    with pytest.raises(ValueError, match="one text, got 2"):
        scoring.score_vectors(vectors, vectors)
