"""A search does not ask an engine twice for the same score."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from m3_integrations.store import embedded
from m3_integrations.store.embedded import EmbeddedStore
from m3_integrations.store.engine import Ask
from m3_integrations.vectors import MODES, Mode
from tests.store.oracle import records, vectors


@pytest.fixture
def store(tmp_path: Path, random: np.random.Generator) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(tmp_path / "store") as store:
        store.upsert(records(random, [f"r{i}" for i in range(40)]))
        yield store


@pytest.fixture
def asks(store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> list[Ask]:
    """What the store asks its engine for, from now on."""
    seen: list[Ask] = []
    search = store._engine.search

    def recorded(asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        seen.extend(asks)
        return search(asks)

    monkeypatch.setattr(store._engine, "search", recorded)
    return seen


def test_the_engine_is_asked_for_what_the_candidates_did_not_bring(
    store: EmbeddedStore, asks: list[Ask], random: np.random.Generator
) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"dense": 5, "lexical": 5})
    ids = sorted({id_ for found in hits.values() for id_ in found.ids})
    asks.clear()
    store.scores(query, ids, MODES, hits)
    asked = {ask.mode: set(ask.ids or ()) for ask in asks}
    assert asked == {
        "dense": set(ids) - set(hits["dense"].ids),
        "lexical": set(ids) - set(hits["lexical"].ids),
        "multi_vector": set(ids),
    }


def test_one_mode_takes_one_search(store: EmbeddedStore, asks: list[Ask], random: np.random.Generator) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"lexical": 5})
    ids, scores = store.scores(query, hits["lexical"].ids, ["lexical"], hits)
    assert [ask.ids for ask in asks] == [None]
    assert ids == hits["lexical"].ids
    np.testing.assert_array_equal(scores["lexical"], hits["lexical"].scores)


def test_a_record_deleted_since_it_was_found_is_passed_over_where_it_is_asked_for(
    store: EmbeddedStore, random: np.random.Generator
) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"lexical": 5})
    gone, *others = hits["lexical"].ids
    store.delete([gone])
    ids, _ = store.scores(query, hits["lexical"].ids, ["dense", "lexical"], hits)
    assert ids == others


def test_ids_are_read_again_where_too_many_are_remembered(
    store: EmbeddedStore, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[Mode, int] = {"dense": 10, "lexical": 5}
    queries = [vectors(random, 1) for _ in range(20)]
    expected = [store.candidates(query, limits) for query in queries]
    monkeypatch.setattr(embedded, "_MAX_REMEMBERED", 12)  # fewer than one search may give
    for query, wanted in zip(queries, expected, strict=True):
        found = store.candidates(query, limits)
        assert [found[mode].ids for mode in limits] == [wanted[mode].ids for mode in limits]
        assert len(store._engine._names) <= 12 + 15  # type: ignore[attr-defined]
