"""Why a record is missing, and which sentences carry a match, are the same over every kind of store."""

import pytest

from m3_integrations import M3Encoder, Searcher, Store, open_store
from m3_integrations.search import Missing

TEXTS = [
    f"Room {i} is {colour}. Its key hangs beside the {place}. Nobody has painted it since {1960 + i}."
    for i, (colour, place) in enumerate(
        (colour, place) for colour in ("red", "blue", "green", "white") for place in ("door", "lift", "stairs")
    )
]
QUERY = "where does the key of the blue room hang?"


@pytest.fixture(scope="module")
def encoder() -> M3Encoder:
    return M3Encoder("tiny", device="cpu")


def filled(encoder: M3Encoder, store: Store) -> Searcher:
    searcher = Searcher(encoder, store)
    searcher.add(TEXTS, ids=[str(i) for i in range(12)], metadatas=[{"floor": i % 3} for i in range(12)])
    return searcher


def test_a_miss_is_explained_alike(encoder: M3Encoder, store: Store) -> None:
    searcher, memory = filled(encoder, store), filled(encoder, open_store())
    for id_ in ("0", "4", "11"):
        found = searcher.explain_missing(QUERY, id_, k=1, pool_size=2, filter={"floor": {"$lt": 2}})
        expected = memory.explain_missing(QUERY, id_, k=1, pool_size=2, filter={"floor": {"$lt": 2}})
        assert [str(clause) for clause in found.excluded_by] == [str(clause) for clause in expected.excluded_by]
        assert ranks(found) == ranks(expected)
        assert found.scores == pytest.approx(expected.scores, abs=2e-3)  # token vectors of 16 bits
        assert found.text_read_to == found.text_length == len(TEXTS[int(id_)])
    assert not searcher.explain_missing(QUERY, "nobody").is_stored


def ranks(found: Missing) -> tuple[object, ...]:
    places = [(place.leg, place.rank, place.n_pool, place.is_in_pool) for place in found.legs]
    return found.rank, found.n_candidates, found.needed_pool_size, found.is_candidate, places


def test_the_sentences_are_the_same(encoder: M3Encoder, store: Store) -> None:
    searcher, memory = filled(encoder, store), filled(encoder, open_store())
    before = encoder.stats.encoded_texts
    for found, expected in zip(searcher.spans(QUERY, ["4", "0"]), memory.spans(QUERY, ["4", "0"]), strict=True):
        assert (found.id, found.text, found.modes) == (expected.id, expected.text, expected.modes)
        assert found.keep() == expected.keep()
        wanted = [sentence.score for sentence in expected.sentences]
        assert [sentence.score for sentence in found.sentences] == pytest.approx(wanted, abs=2e-3)
    assert encoder.stats.encoded_texts - before <= 1  # the query
