"""A search does not ask an engine twice for the same score."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations.store import edge_ids
from m3_integrations.store.edge import EdgeStore
from m3_integrations.vectors import MODES, Mode
from tests.store.oracle import add, records, vectors


@pytest.fixture
def store(tmp_path: Path, random: np.random.Generator) -> Iterator[EdgeStore]:
    with EdgeStore(tmp_path / "store") as store:
        add(store, records(random, [f"a record with the number {i}" for i in range(40)]))
        yield store


@pytest.fixture
def asked(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mode, set[str] | None]]:
    """What the store searches for in its engine from now on: the modes, and the records among which it does."""
    seen: list[tuple[Mode, set[str] | None]] = []
    search = store._search

    def recorded(named: dict[Mode, Any], *rest: Any, among: dict[Mode, list[str]] | None = None, **others: Any) -> Any:
        seen.extend((mode, None if among is None else set(among[mode])) for mode in named)
        return search(named, *rest, among=among, **others)

    monkeypatch.setattr(store, "_search", recorded)
    return seen


def test_the_engine_is_asked_for_what_the_candidates_did_not_bring(
    store: EdgeStore, asked: list[tuple[Mode, set[str] | None]], random: np.random.Generator
) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"dense": 5, "lexical": 5})
    ids = sorted({id_ for found in hits.values() for id_ in found.ids})
    asked.clear()
    store.scores(query, ids, MODES, hits)
    assert asked == [
        ("dense", set(ids) - set(hits["dense"].ids)),
        ("lexical", set(ids) - set(hits["lexical"].ids)),
        ("multi_vector", set(ids)),
    ]


def test_one_mode_takes_one_search(
    store: EdgeStore, asked: list[tuple[Mode, set[str] | None]], random: np.random.Generator
) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"lexical": 5})
    ids, scores = store.scores(query, hits["lexical"].ids, ["lexical"], hits)
    assert asked == [("lexical", None)]
    assert ids == hits["lexical"].ids
    np.testing.assert_array_equal(scores["lexical"], hits["lexical"].scores)


def test_a_record_deleted_since_it_was_found_is_passed_over_where_it_is_asked_for(
    store: EdgeStore, random: np.random.Generator
) -> None:
    query = vectors(random, 1)
    hits = store.candidates(query, {"lexical": 5})
    gone, *others = hits["lexical"].ids
    store.delete([gone])
    ids, _ = store.scores(query, hits["lexical"].ids, ["dense", "lexical"], hits)
    assert ids == others


def test_ids_are_read_again_where_too_many_are_remembered(
    store: EdgeStore, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[Mode, int] = {"dense": 10, "lexical": 5}
    queries = [vectors(random, 1) for _ in range(20)]
    expected = [store.candidates(query, limits) for query in queries]
    monkeypatch.setattr(edge_ids, "_MOST", 12)  # fewer than one search may give
    for query, wanted in zip(queries, expected, strict=True):
        found = store.candidates(query, limits)
        assert [found[mode].ids for mode in limits] == [wanted[mode].ids for mode in limits]
        assert len(store._remembered.ids) <= 12 + 15
