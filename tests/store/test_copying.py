"""Copying one store into another."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from m3_integrations import Record, Store, open_store
from m3_integrations.store import copy_store
from tests.fakes import random_vectors
from tests.store.conftest import OpenStore
from tests.store.oracle import add, brute_force, records, vectors


def fill(store: Store, random: np.random.Generator) -> dict[str, Record]:
    store.bind("one")
    added = records(random, [f"r{i}" for i in range(130)])
    add(store, added)
    return {record.id: record for record in added}


@pytest.mark.parametrize(("source", "target"), [("folder", "local"), ("memory", "folder"), ("local", "memory")])
def test_a_copy_answers_like_its_source(
    source: str, target: str, open_kind: OpenStore, random: np.random.Generator
) -> None:
    a, b = open_kind(source), open_kind(target)
    alive = fill(a, random)
    assert copy_store(a, b) == 130
    assert (b.count(), b.fingerprint) == (130, "one")
    assert {r.id: (r.text, r.metadata) for r in b.records()} == {r.id: (r.text, r.metadata) for r in alive.values()}
    query = vectors(random, 1)
    expected = brute_force(alive, query, {})
    ids, scores = b.scores(query, list(alive), ["dense", "lexical", "multi_vector"])
    for mode, values in scores.items():
        np.testing.assert_allclose(values, [expected[mode][id_] for id_ in ids], atol=1e-5)


@pytest.mark.parametrize("kind", ["memory", "folder", "local"])
def test_what_only_python_takes_for_the_same_is_copied_again(
    kind: str, open_kind: OpenStore, random: np.random.Generator
) -> None:
    paris = timezone(timedelta(hours=2))
    values: list[Any] = [1, True, 1.0, [1], [True], {"a": 0}, {"a": False}, date(2024, 5, 1), datetime(2024, 5, 1)]
    values += [datetime(2024, 5, 1, 2, tzinfo=paris), datetime(2024, 5, 1, tzinfo=UTC), {"b": 1, "a": 2}]
    source, target = open_kind("memory"), open_kind(kind)
    for value in values:
        add(source, [Record("r", "", {"v": value}, vectors(random, 1))])
        assert copy_store(source, target) == 1
        assert repr(target.get(["r"])[0].metadata) == repr({"v": value})
        assert copy_store(source, target) == 0
    add(source, [Record("r", "", {"v": {"a": 2, "b": 1}}, vectors(random, 1))])
    assert copy_store(source, target) == 0  # another order is no other metadata


def test_an_interrupted_copy_goes_on(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as source, open_store(tmp_path / "target") as target:
        fill(source, random)
        upsert, calls = target.upsert, list[int]()

        def failing(ids: Sequence[str], *columns: Any, is_pooled: Any) -> None:
            calls.append(len(ids))
            if len(calls) == 2:
                raise ConnectionError("gone")
            upsert(ids, *columns, is_pooled=is_pooled)

        monkeypatch.setattr(target, "upsert", failing)
        with pytest.raises(ConnectionError):
            copy_store(source, target)
        assert target.count() == 50
        add(source, [Record("r0", "changed", {}, random_vectors(random, 1))])
        assert copy_store(source, target) == 81  # the rest, and what has changed
        assert target.count() == 130
        assert target.get(["r0"])[0].text == "changed"
        assert copy_store(source, target) == 0


def test_a_store_of_another_model_takes_no_copy(random: np.random.Generator) -> None:
    with open_store() as source, open_store() as target:
        fill(source, random)
        target.bind("two")
        with pytest.raises(ValueError, match="of the model two, not of one"):
            copy_store(source, target)
        assert target.count() == 0


@pytest.mark.parametrize(("unbound", "bound"), [("source", "target"), ("target", "source")])
def test_vectors_of_an_unknown_model_are_not_mixed_with_others(
    unbound: str, bound: str, random: np.random.Generator
) -> None:
    with open_store() as source, open_store() as target:
        stores = {"source": source, "target": target}
        add(stores[unbound], records(random, ["a"]))
        stores[bound].bind("one")
        add(stores[bound], records(random, ["a", "b"]))
        with pytest.raises(ValueError, match=f"the {unbound} holds vectors of an unknown model"):
            copy_store(source, target)
        stores[unbound].bind("one")
        copy_store(source, target)
        assert target.count() == 2


def test_what_the_source_has_not_kept_is_not_made_up(tmp_path: Path, random: np.random.Generator) -> None:
    with open_store(tmp_path / "a", multi_vector="none") as source, open_store(tmp_path / "b") as target:
        fill(source, random)
        add(target, records(random, ["whole"]))
        with pytest.raises(ValueError, match="the target keeps multi_vector vectors, which the source does not have"):
            copy_store(source, target)


def test_pooled_records_stay_flagged_and_are_not_pooled_again(tmp_path: Path, random: np.random.Generator) -> None:
    with open_store(tmp_path / "a", token_pooling=2) as source, open_store(tmp_path / "b", token_pooling=2) as target:
        add(source, [Record("a", "", {}, random_vectors(random, 1, tokens=8))])
        copy_store(source, target)
        (record,) = target.get(["a"], with_vectors=True)
        assert record.is_pooled
        assert record.vectors is not None
        assert record.vectors.multi_vector[0].shape[0] == 4


def test_the_next_records_are_read_while_some_are_written(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as source, open_store() as target:
        fill(source, random)  # three batches of 50 at most
        get, upsert, reads = source.get, target.upsert, [Event() for _ in range(3)]

        def reading(ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
            next(read for read in reads if not read.is_set()).set()
            return get(ids, with_vectors=with_vectors)

        def writing(*columns: Any, is_pooled: Any) -> None:
            n_written = target.count() // 50
            assert reads[min(n_written + 1, 2)].wait(30)  # or the next batch waits for this one
            upsert(*columns, is_pooled=is_pooled)

        monkeypatch.setattr(source, "get", reading)
        monkeypatch.setattr(target, "upsert", writing)
        assert copy_store(source, target) == 130
        assert target.count() == 130


def test_what_was_read_before_an_error_is_copied(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store() as source, open_store() as target:
        fill(source, random)
        get, calls = source.get, list[int]()

        def failing(ids: Sequence[str], *, with_vectors: bool = False) -> list[Record]:
            calls.append(len(ids))
            if len(calls) == 3:
                raise ConnectionError("gone")
            return get(ids, with_vectors=with_vectors)

        monkeypatch.setattr(source, "get", failing)
        with pytest.raises(ConnectionError, match="gone"):
            copy_store(source, target)
        assert target.count() == 100
        assert copy_store(source, target) == 30
