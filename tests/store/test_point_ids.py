"""The UUIDs of points: which ones contain the id of a record, and that those of earlier stores remain."""

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import Record
from m3_integrations.store import copy_store, edge_ids
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.edge_ids import RememberedIds
from m3_integrations.store.point_ids import point_id, record_id
from m3_integrations.store.served import ServedStore
from m3_integrations.store.server import ServerStore
from tests.serve.conftest import serving_store
from tests.store.conftest import begun_in_version_2
from tests.store.oracle import add, records, vectors

OWN = [
    "2f1acc6c-3f0b-4a5e-9d5b-1f0e6c2b7a90",  # of version 4, as LangChain and LlamaIndex make them
    "6fa459ea-ee8a-3ca4-894e-db77e160355e",
    "886313e1-3b8a-5372-9b90-0c9aee199e5d",
    "c232ab00-9414-11ec-b3c8-9f6bdeced846",
    "018f3f4e-1234-7abc-bdef-0123456789ab",
]
SHORT = ["", "a", "doc-12345", "0" * 15, "é" * 7, "\0a", "a b", "\x7f", "𝔘𝔫𝔦", "-1", "\n", "a\0b"]
HASHED = [
    "0" * 16,
    "é" * 8,
    "a\0",
    "\0",
    "a file.md#a long heading",
    OWN[0].upper(),
    OWN[0].replace("-", ""),
    "{" + OWN[0] + "}",
    OWN[0] + "\n",
    str(uuid.UUID(int=0)),
    str(uuid.UUID(int=2**128 - 1)),
    "018f3f4e-1234-8abc-8def-0123456789ab",  # of version 8
    "018f3f4e-1234-4abc-cdef-0123456789ab",  # of another variant
    "٠18f3f4e-1234-4abc-8def-0123456789ab",
]


@pytest.mark.parametrize("id_", OWN)
def test_a_uuid_is_its_points_own(id_: str) -> None:
    assert point_id(id_) == id_
    assert record_id(uuid.UUID(id_)) == id_


@pytest.mark.parametrize("id_", SHORT)
def test_a_short_id_stands_in_the_uuid(id_: str) -> None:
    point = uuid.UUID(point_id(id_))
    assert (point.version, point.variant) == (8, uuid.RFC_4122)
    assert record_id(point) == id_


@pytest.mark.parametrize("id_", HASHED)
def test_any_other_id_is_hashed(id_: str) -> None:
    point = uuid.UUID(point_id(id_))
    assert (point.version, point.variant) == (8, uuid.RFC_4122)
    assert record_id(point) is None


def test_the_bits_are_where_stores_on_disks_have_them() -> None:
    digest = hashlib.sha256(b"x" * 16).hexdigest()[:30]
    for id_, kind, own in (("doc-1", "00", b"doc-1".hex().ljust(30, "0")), ("x" * 16, "10", digest)):
        bits = kind + f"{int(own, 16):0120b}"
        whole = bits[:48] + "1000" + bits[48:60] + "10" + bits[60:]
        assert point_id(id_) == str(uuid.UUID(int=int(whole, 2)))
    assert point_id("a") == "18400000-0000-8000-8000-000000000000"
    assert point_id("x" * 16) == "a715ca56-57ec-8a1f-8c2a-2256280448bb"


def test_no_two_ids_share_a_point() -> None:
    ids = {*OWN, *SHORT, *HASHED, *map(str, range(3000)), *(f"{i:020d}" for i in range(3000))}
    ids |= {point_id(id_) for id_ in ids}  # who knows the rule cannot replace another record either
    assert len({point_id(id_) for id_ in ids}) == len(ids)


@pytest.fixture
def many(random: np.random.Generator) -> list[Record]:
    return records(random, [*OWN, *SHORT, *HASHED, *(f"r{i}" for i in range(30))])


def test_every_id_comes_back_from_every_store(store: Any, many: list[Record], random: np.random.Generator) -> None:
    add(store, many)
    add(store, many[::2])  # in the place of the first
    ids = [record.id for record in many]
    assert store.count() == len(ids)
    assert [record.id for record in store.get(ids)] == ids
    query = vectors(random, 1)
    hits = store.candidates(query, {"dense": 100, "lexical": 100})
    assert sorted(hits["dense"].ids) == sorted(ids)
    assert store.scores(query, ids, ["dense", "multi_vector"])[0] == ids
    assert sorted(record.id for record in store.records()) == sorted(ids)
    assert store.delete(ids[:5]) == 5
    assert sorted(record.id for record in store.records()) == sorted(ids[5:])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The points whose ids each search must read, from now on."""
    seen, unknown = list[set[str]](), RememberedIds.unknown

    def recorded(remembered: RememberedIds, points: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        found = unknown(remembered, points)
        seen.append({str(point) for point in found})
        return found

    monkeypatch.setattr(RememberedIds, "unknown", recorded)
    return seen


def test_a_search_reads_only_the_ids_that_points_do_not_contain(
    tmp_path: Path, many: list[Record], random: np.random.Generator, read: list[set[str]]
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, many)
        for _ in range(2):
            found = store.candidates(vectors(random, 1), {"dense": 100})["dense"].ids
            assert sorted(found) == sorted(record.id for record in many)
    assert read == [set(map(point_id, HASHED)), set()]


def test_the_ids_of_a_question_are_not_read_however_few_are_remembered(
    tmp_path: Path,
    many: list[Record],
    random: np.random.Generator,
    read: list[set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge_ids, "_MOST", 3)
    with EdgeStore(tmp_path / "s") as store:
        add(store, many)
        for _ in range(2):
            assert store.scores(vectors(random, 1), HASHED, ["dense"])[0] == HASHED
    assert read == [set(), set()]


def test_a_folder_of_the_second_version_keeps_the_points_that_it_has(
    tmp_path: Path, many: list[Record], random: np.random.Generator
) -> None:
    ids, namespace = [record.id for record in many], uuid.UUID("6f1c6c62-9a0e-5a35-8ce5-3a2f5b0f7c11")
    with begun_in_version_2(tmp_path / "old") as store:
        add(store, many)
        assert {str(point.id) for point in store._scroll(None)[0]} == {str(uuid.uuid5(namespace, id_)) for id_ in ids}
    assert json.loads((tmp_path / "old" / "m3-store.json").read_text())["version"] == 2
    with EdgeStore(tmp_path / "old") as store, EdgeStore(tmp_path / "new") as new:
        add(store, many[3:])  # in the place of the first
        assert store.count() == len(ids)
        query = vectors(random, 1)
        assert sorted(store.candidates(query, {"dense": 100})["dense"].ids) == sorted(ids)
        assert store.scores(query, ids, ["dense", "lexical", "multi_vector"])[0] == ids
        assert [record.id for record in store.get(ids)] == ids
        assert store.delete(ids[:3]) == 3
        copy_store(store, new)
        assert new.format.version == 3
        assert [record.text for record in new.get(ids)] == [record.text for record in many[3:]]
        assert {str(point.id) for point in new._scroll(None)[0]} == set(map(point_id, ids[3:]))


def test_a_collection_has_hashed_points(many: list[Record]) -> None:
    namespace = uuid.UUID("6f1c6c62-9a0e-5a35-8ce5-3a2f5b0f7c11")
    collection = ServerStore("x", client=QdrantClient(":memory:"))
    add(collection, many)
    points = {str(point.id) for point in collection._scroll(None)[0]}
    assert points == {str(uuid.uuid5(namespace, record.id)) for record in many}
    assert collection.format.version == 2


@pytest.mark.enable_socket
def test_a_served_folder_can_be_read_by_clients_that_know_no_later_version(tmp_path: Path, many: list[Record]) -> None:
    with EdgeStore(tmp_path / "s") as store, serving_store(store) as url, ServedStore(url) as served:
        add(served, many)
        assert served.format is not None
        assert (store.format.version, served.format.version) == (3, 2)
