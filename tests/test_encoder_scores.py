"""Scores of pairs of texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import M3Encoder, ModeWeights, scoring
from tests.golden.texts import PAIRS, TEXTS
from tests.test_encoder import LONG


def test_scores_of_pairs_equal_scores_of_encoded_vectors(uncached: M3Encoder) -> None:
    pairs = [(TEXTS[a][:80], TEXTS[b][:80]) for a, b in PAIRS]
    weights = ModeWeights(1, 0.3, 1)
    scores = uncached.score_pairs(pairs, weights=weights)
    for i, (query, text) in enumerate(pairs):
        one = scoring.score_vectors(uncached.encode([query]), uncached.encode([text]), weights)
        for mode in ("dense", "lexical", "multi_vector", "combined"):
            value = float(getattr(one, mode)[0])
            assert getattr(scores, mode)[i] == pytest.approx(value, abs=1e-5 * max(1, abs(value))), (i, mode)


@pytest.mark.parametrize("window", [1, 2, 5, 1000])
def test_scoring_in_windows_gives_every_pair_its_score(
    uncached: M3Encoder, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(window)
    pairs = [(f"query {a}", f"a document about {b}") for a, b in random.integers(0, 6, (40, 2))]
    expected = uncached.score_pairs(pairs)
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", window)
    scores = uncached.score_pairs(pairs)
    for mode in ("dense", "lexical", "multi_vector", "combined"):
        np.testing.assert_allclose(getattr(scores, mode), getattr(expected, mode), atol=1e-5)


def test_a_cut_query_is_counted_and_its_limit_named(small: Path) -> None:
    encoder = M3Encoder(small, device="cpu", query_max_length=5, cache_size_bytes=0)
    with pytest.warns(UserWarning, match="1 of 3 texts were longer than 5 or 128 tokens"):
        encoder.score(LONG, ["a", "b"])
    with pytest.warns(UserWarning, match="2 of 2 texts were longer"):
        encoder.encode([LONG, LONG])


def test_scoring_encodes_each_text_once(uncached: M3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = uncached.stats.encoded_texts
    uncached.score("query", ["a", "b", "a", "c"])
    assert uncached.stats.encoded_texts - before == 4
    uncached.score_pairs([("q1", "a"), ("q2", "a"), ("q1", "b")])
    assert uncached.stats.encoded_texts - before == 8
    monkeypatch.setattr("m3_integrations.encoder._WINDOW_TEXTS", 3)
    pairs = [(f"query {i}", f"document {j}") for i in range(10) for j in range(7)]
    uncached.score_pairs(pairs)
    assert uncached.stats.encoded_texts - before == 8 + 17


def test_weights_without_a_mode_to_lie_on_are_refused_before_encoding(encoder: M3Encoder) -> None:
    before = encoder.stats.forward_passes
    with pytest.raises(ValueError, match="not all 0"):
        encoder.score("q", ["a"], weights=ModeWeights(0, 0, 0))
    assert encoder.stats.forward_passes == before


def test_scores_are_weighted_by_whatever_names_weights(encoder: M3Encoder) -> None:
    expected = encoder.score("keys", ["the keys", "tea"], weights=ModeWeights(1, 0.3, 1)).combined
    weights: Any
    for weights in ("miracl", [1, 0.3, 1], {"dense": 1, "lexical": 0.3, "multi_vector": 1}):
        assert encoder.score("keys", ["the keys", "tea"], weights=weights).combined == pytest.approx(expected)
        pairs = [("keys", "the keys"), ("keys", "tea")]
        assert encoder.score_pairs(pairs, weights=weights).combined == pytest.approx(expected)
