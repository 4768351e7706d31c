"""A store behind `m3 serve`: whose URL it is, that it is exact and shared, and what happens when something breaks.

What every store does alike is tested for it in `test_conformance`.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from m3_integrations import M3Encoder, M3Vectors, Searcher, Store, open_store
from m3_integrations.search import IncompleteAddError
from m3_integrations.serve import Limits, create_app
from m3_integrations.store import copy_store
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.served import ServedStore
from m3_integrations.vectors import MODES
from tests.fakes import FakeEncoder
from tests.serve.conftest import serving, serving_store
from tests.store.oracle import add, records, vectors

pytestmark = pytest.mark.enable_socket


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[EdgeStore]:
    with EdgeStore(tmp_path / "s") as store:
        yield store


def same(one: Any, other: Any) -> bool:
    """To the bit."""
    return bool(np.asarray(one).tobytes() == np.asarray(other).tobytes())


@pytest.mark.parametrize("behind", ["memory", "folder"])
def test_searches_equal_those_of_the_store_behind_to_the_bit(
    behind: str, folder: EdgeStore, random: np.random.Generator
) -> None:
    inner: Store = folder if behind == "folder" else MemoryStore()
    encoder = FakeEncoder()
    direct = Searcher(encoder, inner)
    direct.add([f"text {i} of the vault" for i in range(200)], ids=[f"r{i}" for i in range(200)])
    with serving_store(inner) as url, open_store(url) as store:
        assert isinstance(store, ServedStore)
        for options in ({}, {"mode": "dense"}, {"mode": "multi_vector"}, {"mode": "lexical"}, {"fusion": "rrf"}):
            found = Searcher(encoder, store).search("which vault?", k=20, **options)  # type: ignore[arg-type]
            wanted = direct.search("which vault?", k=20, **options)  # type: ignore[arg-type]
            assert found == wanted
            assert len(found) > 3


def test_a_search_takes_two_requests(random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    inner = MemoryStore()
    with serving_store(inner) as url, open_store(url) as store:
        searcher = Searcher(FakeEncoder(), store)
        searcher.add(["a", "b", "c"])
        ask = ServedStore._ask
        monkeypatch.setattr(ServedStore, "_ask", lambda s, path, sent: (asked.append(path), ask(s, path, sent))[1])  # type: ignore[func-returns-value]
        assert len(searcher.search("a")) == 3
    assert asked == ["/candidates", "/get"]


ZONE = timezone(timedelta(hours=5, minutes=30))
DATED: dict[str, Any] = {
    "day": date(2024, 5, 1),
    "at": datetime(2024, 5, 1, 10, 30, 0, 7, tzinfo=ZONE),
    "local": datetime(2024, 5, 1),
    "text": "2024-05-01",
    "list": [1, date(1, 1, 1), {"deep": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)}],
    "sum": 0.1 + 0.2,
    "big": 2**1000 + 1,
    "minus": -0.0,
}


def test_dates_and_numbers_come_back_as_they_were(folder: EdgeStore, random: np.random.Generator) -> None:
    for inner in (folder, MemoryStore()):
        with serving_store(inner) as url, open_store(url) as store:
            store.upsert(["a"], ["text"], [DATED], vectors(random, 1))
            for record in (*store.get(["a"]), *store.records(), *inner.get(["a"])):
                assert repr(record.metadata) == repr(DATED)


@pytest.mark.parametrize(
    ("asked", "n"),
    [
        ({"day": date(2024, 5, 1)}, 1),
        ({"text": date(2024, 5, 1)}, 1),  # a date finds a string that is one
        ({"local": "2024-05-01"}, 1),
        ({"text": "2024-05-01T00:00"}, 0),  # two strings are equal to the letter
        ({"text": datetime(2024, 5, 1)}, 1),
        ({"at": datetime(2024, 5, 1, 5, 0, 0, 7, tzinfo=UTC)}, 1),
        ({"at": {"$gt": datetime(2024, 5, 1, 5, 0, 0, 7, tzinfo=UTC)}}, 0),
        ({"day": {"$nin": [date(2024, 5, 1)]}}, 0),
        ({"$not": {"day": {"$lt": "2024-05-01"}}}, 1),
        ({"$or": [{"day": {"$in": []}}, {"list.deep": {"$gte": datetime(9999, 12, 31)}}]}, 1),
    ],
)
def test_filters_by_date_mean_the_same_there(
    asked: dict[str, Any], n: int, folder: EdgeStore, random: np.random.Generator
) -> None:
    with serving_store(folder) as url, open_store(url) as store:
        store.upsert(["a"], ["text"], [DATED], vectors(random, 1))
        assert (store.count(asked), folder.count(asked)) == (n, n)
        assert len(store.candidates(vectors(random, 1), {"dense": 3}, asked)["dense"].ids) == n
        assert store.delete_where({"$and": [asked, {"big": {"$exists": True}}]}) == n


PROGRAM = """
import sys
from m3_integrations import Searcher, open_store
from m3_integrations.remote import RemoteEncoder
url, role = sys.argv[1:]
searcher = Searcher(RemoteEncoder(url), open_store(url))
if role == "add":
    searcher.add(["Rotate the keys once a year.", "The museum is closed on Mondays."], ids=["keys", "museum"])
else:
    print(searcher.search("when is the museum closed?", k=1)[0].id, {"torch", "qdrant_client"} & set(sys.modules))
"""


def test_two_processes_share_one_folder(folder: EdgeStore) -> None:
    with M3Encoder("tiny", device="cpu") as encoder, serving(create_app(encoder, store=folder)) as url:
        for role, said in (("add", ""), ("find", "museum set()\n")):
            command = [sys.executable, "-c", PROGRAM, url, role]
            assert subprocess.check_output(command, text=True, timeout=120) == said
        assert folder.count() == 2


def test_a_large_upsert_becomes_requests_of_bounded_size(random: np.random.Generator) -> None:
    inner, sizes = MemoryStore(), list[int]()
    upsert = inner.upsert

    def note(ids: Any, *args: Any, **given: Any) -> None:
        sizes.append(len(ids))
        upsert(ids, *args, **given)

    inner.upsert = note  # type: ignore[method-assign]
    with (
        serving_store(inner, limits=Limits(max_body_bytes=10_000, max_texts=50)) as url,
        open_store(url) as store,
    ):
        added = records(random, [f"r{i}" for i in range(300)])
        add(store, added)
        assert len(sizes) > 6
        assert sum(sizes) == store.count() == 300
        assert [record.id for record in store.get([r.id for r in added])] == [r.id for r in added]
        query = vectors(random, 1)
        ids, scores = store.scores(query, [r.id for r in added], MODES)
        wanted_ids, wanted = inner.scores(query, [r.id for r in added], MODES)
        assert ids == wanted_ids
        for mode in MODES:
            np.testing.assert_allclose(scores[mode], wanted[mode], rtol=1e-6, atol=1e-7)
        n_before = len(sizes)
        with pytest.raises(ValueError, match=r"record 'large' has .* bytes .*--max-body-bytes"):
            store.upsert(["b", "large"], ["", "x" * 30_000], [{}, {}], vectors(random, 2))
        assert len(sizes) == n_before


def test_a_bad_record_at_the_end_of_many_requests_leaves_the_store_as_it_was(random: np.random.Generator) -> None:
    with serving_store(MemoryStore(), limits=Limits(max_texts=10)) as url, open_store(url) as store:
        ids = [f"r{i}" for i in range(30)]
        with pytest.raises(ValueError, match="record 'r29' cannot have"):
            store.upsert(ids, ids, [*([{}] * 29), {"x": float("nan")}], vectors(random, 30))
        made = vectors(random, 30)
        made.dense[29, 0] = np.inf
        with pytest.raises(ValueError, match="infinite or NaN"):
            store.upsert(ids, ids, [{}] * 30, made)
        assert store.count() == 0


@pytest.mark.parametrize("error", [OSError("the disk is full"), ValueError("no room"), RuntimeError("bug")])
def test_what_fails_midway_says_what_is_in(error: Exception) -> None:
    inner, n_calls = MemoryStore(), 0
    upsert = inner.upsert

    def fail(*args: Any, **given: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise error
        upsert(*args, **given)

    class AllAtOnce(FakeEncoder):
        def encode_batches(self, texts: Any, **given: Any) -> Iterator[M3Vectors]:
            yield self.encode(list(texts))

    inner.upsert = fail  # type: ignore[method-assign]
    with serving_store(inner, limits=Limits(max_texts=10)) as url, open_store(url) as store:
        ids = [f"r{i}" for i in range(30)]
        searcher = Searcher(AllAtOnce(), store)
        with pytest.raises(IncompleteAddError) as caught:
            searcher.add(ids, ids=ids)
        assert (caught.value.ids, caught.value.added, inner.count()) == (ids, [], 20)
        searcher.add(ids, ids=caught.value.ids)
        assert inner.count() == 30


def test_a_server_that_goes_away_in_a_write_is_an_error_and_the_retry_makes_no_duplicates() -> None:
    inner = MemoryStore()
    with serving_store(inner) as url:
        store = open_store(url)
        searcher = Searcher(FakeEncoder(), store)
        searcher.add(["a"], ids=["a"])
    with pytest.raises(IncompleteAddError) as caught:
        searcher.add(["a", "b"], ids=["a", "b"])
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert inner.count() == 1
    with serving_store(inner) as url, open_store(url) as again:
        Searcher(FakeEncoder(), again).add(["a", "b"], ids=caught.value.ids)
    assert inner.count() == 2


CHANGES = [
    lambda store: store.delete(["a"]),
    lambda store: store.delete_where({"n": {"$exists": False}}),
    lambda store: store.optimize(),
    lambda store: store.flush(),
]


class Watched(MemoryStore):
    """Notes the calls that change records or files."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = 0

    def delete(self, ids: Sequence[str]) -> int:
        self.changes += 1
        return super().delete(ids)

    def delete_where(self, filter: Any) -> int:  # noqa: A002
        self.changes += 1
        return super().delete_where(filter)

    def optimize(self) -> None:
        self.changes += 1

    def flush(self) -> None:
        self.changes += 1


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("before", ["one model", None])
@pytest.mark.parametrize("looks", [False, True])
def test_a_change_for_the_store_of_another_model_is_refused_before_anything_changes(
    change: Callable[[Store], object], before: str | None, looks: bool, random: np.random.Generator
) -> None:
    inner = Watched()
    if before is not None:
        inner.bind(before)
    with serving_store(inner) as url, open_store(url) as store:
        inner._fingerprint = "another model"  # as if the server had been started again with another store
        inner.upsert(["a"], ["a"], [{}], vectors(random, 1))
        known = f"the model {before}" if before else "no model"
        said = f"now has a store of the model another model; it had one of {known} .* open the store again"
        if looks and before is not None:
            with pytest.raises(ValueError, match=said):  # the store was empty, so its modes are read again
                _ = store.modes
        with pytest.raises(ValueError, match=said):
            change(store)
        assert (inner.changes, inner.count()) == (0, 1)


@pytest.mark.parametrize("path", ["delete", "optimize", "flush"])
def test_a_client_that_names_no_model_may_change_the_store(path: str) -> None:
    inner = Watched()
    inner.bind("one model")
    with serving_store(inner) as url:
        asked = {"ids": ["a"]} if path == "delete" else {}
        assert httpx.post(f"{url}/v1/store/{path}", json=asked, timeout=60).status_code == 200
        named = {"X-M3-Fingerprint": "one model"}
        assert httpx.post(f"{url}/v1/store/{path}", json=asked, headers=named, timeout=60).status_code == 200
        assert inner.changes == 2


def test_tokens_are_pooled_as_the_store_behind_does(tmp_path: Path, random: np.random.Generator) -> None:
    added = records(random, [f"r{i}" for i in range(20)])
    with (
        EdgeStore(tmp_path / "a", token_pooling=2) as direct,
        EdgeStore(tmp_path / "b", token_pooling=2) as inner,
        serving_store(inner) as url,
        open_store(url) as store,
    ):
        add(direct, added)
        add(store, added)
        ids = [record.id for record in added]
        assert any(record.is_pooled for record in store.get(ids))
        for one, two in zip(direct.get(ids, with_vectors=True), store.get(ids, with_vectors=True), strict=True):
            assert one.is_pooled == two.is_pooled
            assert one.vectors is not None
            assert two.vectors is not None
            assert same(one.vectors.multi_vector.flat, two.vectors.multi_vector.flat)


def test_a_store_without_multi_vectors_is_sent_none(tmp_path: Path, random: np.random.Generator) -> None:
    with EdgeStore(tmp_path / "n", multi_vector="none") as inner, serving_store(inner) as url, open_store(url) as store:
        add(store, records(random, ["a"]))
        assert store.kept_modes == store.modes == ("dense", "lexical")


def test_records_are_copied_both_ways(folder: EdgeStore, random: np.random.Generator) -> None:
    added = records(random, [f"r{i}" for i in range(120)])
    with serving_store(folder) as url, open_store(url) as store, open_store() as source, open_store() as target:
        source.bind("m")
        add(source, added)
        assert copy_store(source, store) == 120
        assert copy_store(store, target) == 120
        assert target.fingerprint == folder.fingerprint == "m"
        for one, two in zip(source.get(["r7"], with_vectors=True), target.get(["r7"], with_vectors=True), strict=True):
            assert (one.text, one.metadata) == (two.text, two.metadata)
            assert one.vectors is not None
            assert two.vectors is not None
            assert same(one.vectors.dense, two.vectors.dense)
            assert same(one.vectors.multi_vector.flat, two.vectors.multi_vector.flat)


@pytest.mark.parametrize("path", ["upsert", "candidates", "scores"])
@pytest.mark.parametrize("body", [b"", b"garbage", b"\xff" * 40, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_body_that_cannot_be_read_is_refused(path: str, body: bytes) -> None:
    with serving_store(MemoryStore()) as url:
        answer = httpx.post(f"{url}/v1/store/{path}", content=body)
        assert (answer.status_code, "the body has content that is not safetensors" in answer.text) == (422, True)
