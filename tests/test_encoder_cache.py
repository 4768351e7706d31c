"""Which texts are encoded only once, and which vectors the cache keeps."""

from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Encoder


def test_a_text_asked_for_twice_is_encoded_once(encoder: M3Encoder) -> None:
    first = encoder.encode(["one", "two", "one"])
    assert encoder.stats.encoded_texts == 2
    again = encoder.encode(["two", "three", "one"])
    assert encoder.stats.encoded_texts == 3
    assert encoder.stats.cache_hits == 2
    encoder.encode(["two", "two"])
    assert encoder.stats.cache_hits == 4, "texts that were answered, not different ones"
    np.testing.assert_array_equal(first.dense[0], first.dense[2])
    np.testing.assert_array_equal(again.dense[[2, 0]], first.dense[:2])
    np.testing.assert_array_equal(again.multi_vector[2], first.multi_vector[0])
    assert again.lexical[2].to_dict() == first.lexical[0].to_dict()


def test_dense_and_lexical_asked_for_separately_cost_one_pass(encoder: M3Encoder) -> None:
    encoder.encode(["a document"], modes=("dense",))
    encoder.encode(["a document"], modes=("lexical",))
    assert encoder.stats.forward_passes == 1
    encoder.encode(["a document"])  # its token vectors were not computed above
    assert encoder.stats.forward_passes == 2


def test_many_or_long_queries_get_no_more_modes_than_they_ask_for(encoder: M3Encoder) -> None:
    queries = [f"query number {i} with some more words" for i in range(200)]
    encoder.encode(queries, kind="query", modes=("dense",))
    passes = encoder.stats.forward_passes
    encoder.encode(queries[-1:], kind="query")  # the token vectors were not computed above
    assert encoder.stats.forward_passes == passes + 1


def test_pooling_is_part_of_what_the_cache_knows_a_text_by(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_integrations.tokenizer.MCLS_INTERVAL", 5)
    text = "one two three four five six seven eight nine ten"
    one, other = (M3Encoder(wide, device="cpu", pooling=pooling) for pooling in ("cls", "mcls"))
    assert not np.allclose(one.encode([text]).dense, other.encode([text]).dense)


def test_a_query_embedded_sparse_embedded_and_reranked_costs_one_pass(small: Path, encoder: M3Encoder) -> None:
    encoder.encode(["a query"], kind="query", modes=("dense",))
    encoder.encode(["a query"], kind="query", modes=("lexical",))
    encoder.encode(["a query"], kind="query")
    assert encoder.stats.forward_passes == 1


def test_results_are_the_callers_own(encoder: M3Encoder) -> None:
    first = encoder.encode(["mine"])
    expected = first.dense.copy()
    first.dense[:] = 0
    first.multi_vector.flat[:] = 0
    np.testing.assert_array_equal(encoder.encode(["mine"]).dense, expected)


def test_the_cache_stays_within_its_bound_and_drops_the_least_recently_used(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=40_000)
    cache = encoder._live_engine().cache
    texts = [f"text number {i}" for i in range(200)]
    for text in texts:
        encoder.encode([text])
        encoder.encode(["kept, since it is asked for again and again"])
        assert cache.size_bytes <= 40_000
    assert 5 < len(cache) < 40
    assert encoder.stats.cache_hits == 199
    encoder.encode([texts[-1]])
    assert encoder.stats.cache_hits == 200
    encoder.encode([texts[0]])
    assert encoder.stats.cache_hits == 200


def test_a_long_run_leaves_half_of_the_cache_to_others(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=200_000)
    encoder.encode(["what somebody asks"])
    encoder.encode([f"one of very many records {i}" for i in range(400)])
    passes = encoder.stats.forward_passes
    encoder.encode(["what somebody asks"])
    encoder.encode(["one of very many records 399"])
    assert encoder.stats.forward_passes == passes


def test_an_import_does_not_drive_out_what_interactive_callers_ask(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=200_000)
    encoder.encode(["what somebody asks"], kind="query")
    for _ in encoder.encode_batches(f"one of very many records {i}" for i in range(5000)):
        pass
    passes = encoder.stats.forward_passes
    encoder.encode(["what somebody asks"], kind="query")
    encoder.encode(["one of very many records 4999"])
    assert encoder.stats.forward_passes == passes
    assert encoder._live_engine().cache.size_bytes > 90_000, "half of it holds records"


def test_of_two_handles_the_larger_cache_counts(small: Path) -> None:
    large = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=10**6)
    cache = large._live_engine().cache
    cache.allow(10)
    large.encode([f"text {i}" for i in range(20)])
    assert len(cache) == 20


def test_a_cache_of_size_zero_keeps_nothing(small: Path) -> None:
    encoder = M3Encoder(small, shared=False, device="cpu", cache_size_bytes=0)
    encoder.encode(["a", "b", "a"])
    assert len(encoder._live_engine().cache) == 0
    assert encoder.stats.encoded_texts == 2


def test_settings_that_change_a_vector_are_never_answered_from_the_cache(small: Path) -> None:
    text = "five words make a text"
    with M3Encoder(small, shared=False, device="cpu") as encoder, pytest.warns(UserWarning, match="longer"):
        whole, part = encoder.encode([text]), encoder.encode([text], max_length=4)
    assert not np.allclose(whole.dense, part.dense)
