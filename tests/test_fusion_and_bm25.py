import numpy as np
import pytest
from rank_bm25 import BM25Okapi

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


def test_bm25_scores_are_rank_bm25s() -> None:
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    texts = [[words[i] for i in random.integers(0, 40, random.integers(0, 12))] for _ in range(60)]
    index, reference = Bm25Index([str(i) for i in range(60)], texts), BM25Okapi(texts)
    for _ in range(20):
        query = [words[i] for i in random.integers(0, 40, 4)]
        expected = reference.get_scores(query)
        np.testing.assert_allclose(index.scores(query), expected, rtol=1e-6)
        sharing = [i for i, text in enumerate(texts) if set(text) & set(query)]
        best = sorted(sharing, key=lambda i: -np.float32(expected[i]))[:7]
        assert [id_ for id_, _ in index.top(query, 7)] == [str(i) for i in best]


def test_bm25_gives_only_texts_that_share_a_token_and_only_those_allowed() -> None:
    index = Bm25Index(["a", "b", "c"], [["x", "y"], ["z"], ["x"]])
    assert [id_ for id_, _ in index.top(["x"], 10)] == ["c", "a"]
    assert [id_ for id_, _ in index.top(["x"], 10, among={"a", "b"})] == ["a"]
    assert index.top(["nowhere"], 10) == []


def test_bm25_over_nothing_finds_nothing() -> None:
    assert Bm25Index([], []).top(["x"], 3) == []
    assert Bm25Index(["a"], [[]]).top(["x"], 3) == []
    with pytest.raises(ValueError, match="2 ids for 1 texts"):
        Bm25Index(["a", "b"], [[]])
