import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from m3_integrations.bm25 import Bm25Index
from m3_integrations.fusion import reciprocal_rank_fusion


def test_fusion_adds_reciprocal_ranks_that_start_at_one() -> None:
    fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]])
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})


def test_fusion_respects_weights_and_k() -> None:
    fused = reciprocal_rank_fusion([["a"], ["b"]], weights=[0.25, 2.0], rrf_k=0)
    assert fused == {"a": 0.25, "b": 2.0}
    assert reciprocal_rank_fusion([]) == {}


def test_fusion_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        reciprocal_rank_fusion([["a"]], rrf_k=-1)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        reciprocal_rank_fusion([["a"], ["b"]], weights=[1.0])


def brute_force(texts: Mapping[int, Sequence[str]], query: Sequence[str]) -> dict[int, float]:
    """Return Lucene's BM25 of every text that shares a token, computed in plain loops."""
    average = sum(map(len, texts.values())) / len(texts)
    scores: dict[int, float] = {}
    for key, text in texts.items():
        for token in query:
            if token in text:
                n = sum(token in other for other in texts.values())
                idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
                length = 1 - 0.75 + 0.75 * len(text) / average
                scores[key] = scores.get(key, 0.0) + idf * text.count(token) / (text.count(token) + 1.2 * length)
    return scores


def test_bm25_scores_are_lucenes_by_hand() -> None:
    index = Bm25Index()
    index.add({1: ["x", "y"], 2: ["x", "x", "z", "z"]})
    # Two texts of 3 tokens on average. "y" is in one: ln 2; "x" is in both: ln 1.2.
    y = math.log(2) * 1 / (1 + 1.2 * (0.25 + 0.75 * 2 / 3))
    x = math.log(1.2) * 2 / (2 + 1.2 * (0.25 + 0.75 * 4 / 3))
    assert dict(index.top(["y"], 2)) == pytest.approx({1: y})
    assert dict(index.top(["x"], 1)) == pytest.approx({2: x})


def test_bm25_equals_brute_force_under_random_changes() -> None:
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    index, texts, next_key = Bm25Index(), dict[int, list[str]](), 0
    for _ in range(60):
        new = {
            next_key + i: [words[w] for w in random.integers(0, 30, random.integers(0, 12))]
            for i in range(random.integers(0, 6))
        }
        next_key += len(new)
        gone = [key for key in texts if random.random() < 0.15]
        index.add(new)
        index.discard(gone)
        texts = {key: text for key, text in (texts | new).items() if key not in gone}
        query = [words[w] for w in random.integers(0, 30, 3)] * 2
        among = None if random.random() < 0.5 else {key for key in texts if random.random() < 0.5} | {-1}
        expected = brute_force(texts, query) if texts else {}
        best = sorted(expected, key=lambda key: (-np.float32(expected[key]), key))
        found = index.top(query, 7, among=among)
        assert [key for key, _ in found] == [key for key in best if among is None or key in among][:7]
        assert [score for _, score in found] == pytest.approx([expected[key] for key, _ in found], rel=1e-6)


def test_more_shared_tokens_rank_higher_in_the_smallest_collections() -> None:
    for n_texts in range(1, 8):
        for n_others in range(n_texts):
            index = Bm25Index()
            texts = {0: ["a", "b", "c"], **{i: ["a", "d", "e"] for i in range(1, n_others + 1)}}
            index.add(texts | {i: ["f", "g", "h"] for i in range(n_others + 1, n_texts)})
            found = index.top(["a", "b"], n_texts)
            assert [key for key, _ in found] == list(range(n_others + 1))
            assert all(score > 0 for _, score in found)


def test_bm25_over_nothing_finds_nothing() -> None:
    index = Bm25Index()
    assert index.top(["x"], 3) == []
    index.add({1: []})
    assert index.top(["x"], 3) == []
    index.discard([1])
    assert index.top(["x"], 3) == []
