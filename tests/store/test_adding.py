"""Adding is checked as a whole before the first pass; what fails later names every id, and a retry doubles nothing."""

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from numpy.typing import NDArray

from m3_integrations import IncompleteAddError, M3Vectors, Searcher, Store, open_store
from m3_integrations.langchain import M3HybridRetriever
from m3_integrations.llama_index import M3HybridRetriever as NodeRetriever
from m3_integrations.search import replace_sources
from m3_integrations.store import copy_store
from tests.fakes import FakeEncoder
from tests.store.conftest import OpenStore
from tests.store.oracle import records

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LOOK_ALIKES: list[tuple[Any, Any]] = [
    (True, 1),
    (0, False),
    (1.0, 1),
    (0.0, -0.0),
    (NOON, NOON.astimezone(timezone(timedelta(hours=2)))),
]
"""Equal to Python, and not the same to a reader or a filter."""

TEXTS = [f"text number {i}" for i in range(7)]
KINDS = ["memory", "folder", "local"]


class Batches(FakeEncoder):
    """Encodes three texts at a time, and fails instead of encoding those of a batch."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.fails_at = fails_at

    def encode_batches(self, texts: Any, *, modes: Any = None, show_progress: bool = False) -> Iterator[M3Vectors]:
        listed = list(texts)
        for n, start in enumerate(range(0, len(listed), 3)):
            if n == self.fails_at:
                raise MemoryError("no memory")
            yield self.encode(listed[start : start + 3], modes=modes)


Fault = tuple[int, str]
"""Which call of `upsert` fails, and when: before it writes, with a half written, or after it has written."""

FAULTS = [(n, when) for n in range(3) for when in ("before", "half", "after")]


def break_upsert(store: Store, fault: Fault, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    upsert, calls = store.upsert, list[int]()

    def failing(
        ids: Sequence[str],
        texts: Sequence[str],
        metadatas: Sequence[Mapping[str, Any]],
        vectors: M3Vectors,
        *,
        is_pooled: NDArray[np.bool_] | None = None,
    ) -> None:
        calls.append(len(ids))
        if len(calls) - 1 != fault[0]:
            return upsert(ids, texts, metadatas, vectors, is_pooled=is_pooled)
        n = {"before": 0, "half": len(ids) // 2, "after": len(ids)}[fault[1]]
        if n:
            flags = None if is_pooled is None else is_pooled[:n]
            upsert(ids[:n], texts[:n], metadatas[:n], vectors[:n], is_pooled=flags)
        raise error

    monkeypatch.setattr(store, "upsert", failing)


Add = Callable[[Store, list[str] | None], list[str]]


def by_add(store: Store, ids: list[str] | None) -> list[str]:
    return Searcher(Batches(), store).add(TEXTS, ids=ids)


def by_aadd(store: Store, ids: list[str] | None) -> list[str]:
    return asyncio.run(Searcher(Batches(), store).aadd(TEXTS, ids=ids))


def by_langchain(store: Store, ids: list[str] | None) -> list[str]:
    documents = [Document(text) for text in TEXTS]
    return M3HybridRetriever(encoder=Batches(), store=store).add_documents(documents, ids=ids)


def by_langchain_async(store: Store, ids: list[str] | None) -> list[str]:
    return asyncio.run(M3HybridRetriever(encoder=Batches(), store=store).aadd_texts(TEXTS, ids=ids))


def by_llama_index(store: Store, ids: list[str] | None) -> list[str]:
    chosen = ids or [f"node {i}" for i in range(len(TEXTS))]
    nodes = [TextNode(id_=id_, text=text) for id_, text in zip(chosen, TEXTS, strict=True)]
    return NodeRetriever(encoder=Batches(), store=store).add_nodes(nodes)


WAYS = [by_add, by_aadd, by_langchain, by_langchain_async, by_llama_index]


def there(store: Store) -> dict[str, str]:
    found = [(record.id, record.text) for record in store.records()]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("add", WAYS)
def test_no_record_is_under_an_unknown_id_and_a_retry_makes_no_duplicate(
    add: Add, fault: Fault, kind: str, open_kind: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_kind(kind)
    with monkeypatch.context() as patch:
        break_upsert(store, fault, OSError("the disk is full"), patch)
        with pytest.raises(IncompleteAddError, match=f"{3 * fault[0]} of 7 texts were added") as failed:
            add(store, None)
    error = failed.value
    assert isinstance(error.__cause__, OSError)
    assert (len(error.ids), error.added) == (7, error.ids[: 3 * fault[0]])
    assert set(error.added) <= there(store).keys() <= set(error.ids)
    assert add(store, error.ids) == error.ids
    assert there(store) == dict(zip(error.ids, TEXTS, strict=True))


@pytest.mark.parametrize("add", [Searcher.add, lambda *a, **k: asyncio.run(Searcher.aadd(*a, **k))])
@pytest.mark.parametrize("fails_at", range(3))
def test_a_failure_of_the_encoder_is_the_error_itself_as_long_as_nothing_is_in(add: Any, fails_at: int) -> None:
    store = open_store()
    with pytest.raises(MemoryError if fails_at == 0 else IncompleteAddError) as failed:
        add(Searcher(Batches(fails_at), store), TEXTS)
    added = [] if fails_at == 0 else failed.value.added  # type: ignore[attr-defined]
    assert (list(there(store)), len(added)) == (added, 3 * fails_at)


def test_an_interruption_keeps_its_type_and_has_the_ids_as_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    break_upsert(store, (1, "half"), KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Searcher(Batches(), store).add(TEXTS)
    incomplete = stopped.value.__cause__
    assert isinstance(incomplete, IncompleteAddError)
    assert set(incomplete.added) < there(store).keys() < set(incomplete.ids)


def test_the_error_can_be_copied_and_pickled() -> None:
    error = IncompleteAddError(["a", "b"], ["a"])
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (twin.ids, twin.added, str(twin)) == (["a", "b"], ["a"], str(error))


def test_what_a_store_refuses_at_first_is_the_error_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store()
    break_upsert(store, (0, "before"), ValueError("of another size"), monkeypatch)
    with pytest.raises(ValueError, match="of another size"):
        Searcher(Batches(), store).add(TEXTS)


BAD_COLUMNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"texts": [*TEXTS, "half \ud800"]}, ValueError, "text at position 7.*position 5"),
    ({"texts": [*TEXTS, None]}, TypeError, "got NoneType at position 7"),
    ({"texts": [*TEXTS, b"x"]}, TypeError, "got bytes at position 7"),
    ({"texts": "one"}, TypeError, r"pass \[text\]"),
    ({"texts": 5}, TypeError, "iterable"),
    ({"ids": [*"abcdef", 7]}, TypeError, "got 7 at position 6"),
    ({"ids": [*"abcdef", "\ud800"]}, ValueError, "id at position 6"),
    ({"ids": "abcdefg"}, TypeError, r"pass \[id\]"),
    ({"ids": ["a"]}, ValueError, "7 texts and 1 ids"),
    ({"metadatas": [{}] * 6 + [5]}, TypeError, "metadata of text 6 must be a mapping"),
    ({"metadatas": [{}] * 6 + [{"a": {1}}]}, ValueError, "metadata of text 6 cannot have {1}"),
    ({"ids": list("abcdefg"), "metadatas": [{}] * 6 + [{"a": b""}]}, ValueError, r"metadata of 'g' \(text 6\)"),
    ({"metadatas": [{}]}, ValueError, "7 texts and 1 metadatas"),
    ({"metadatas": {"a": 1}}, TypeError, r"pass \[metadata\]"),
]


@pytest.mark.parametrize(("columns", "error", "message"), BAD_COLUMNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_is_refused_before_the_first_pass(
    kind: str, columns: dict[str, Any], error: type[Exception], message: str, open_kind: OpenStore
) -> None:
    store, encoder = open_kind(kind), Batches()
    asked: dict[str, Any] = {"texts": TEXTS} | columns
    retriever = M3HybridRetriever(encoder=encoder, store=store)
    for add in (Searcher(encoder, store).add, retriever.add_texts):
        with pytest.raises(error, match=message):
            add(**asked)
        once: dict[str, Any] = {name: iter(each) if isinstance(each, list) else each for name, each in asked.items()}
        with pytest.raises(error, match=message):
            add(**once)
    assert (encoder.encoded, store.count()) == ([], 0)


def test_metadata_that_are_not_given_are_empty(open_kind: OpenStore) -> None:
    for kind in KINDS:
        store = open_kind(kind)
        Searcher(Batches(), store).add(iter(["a", "b"]), ids=iter(["1", None]), metadatas=iter([None, {"n": 1}]))
        assert sorted(str(record.metadata) for record in store.records()) == ["{'n': 1}", "{}"]


def test_strings_of_numpy_become_strings() -> None:
    texts, ids = np.array(["one", "two"]), np.array(["1", "2"])
    store = open_store()
    assert repr(Searcher(Batches(), store).add(texts, ids=ids)) == "['1', '2']"
    replaced = replace_sources(
        Searcher(Batches(), store), texts, source_key="s", ids=ids, metadatas=[{"s": np.str_("a")}] * 2
    )
    assert repr(replaced) == "['1', '2']"
    assert repr([(record.id, record.text) for record in store.records()]) == "[('1', 'one'), ('2', 'two')]"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("target", ["folder", "local"])
def test_a_copy_that_failed_anywhere_goes_on(
    target: str, fault: Fault, open_kind: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, copied, random = open_kind("memory"), open_kind(target), np.random.default_rng(0)
    added = records(random, [f"r{i}" for i in range(130)])
    for record in added:
        assert record.vectors is not None
        source.upsert([record.id], [record.text], [record.metadata], record.vectors)
    with monkeypatch.context() as patch:
        break_upsert(copied, fault, OSError("gone"), patch)
        with pytest.raises(OSError, match="gone"):
            copy_store(source, copied)
    assert there(copied).keys() <= there(source).keys()
    copy_store(source, copied)
    assert there(copied) == there(source)


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize(("now", "before"), LOOK_ALIKES)
def test_a_copy_replaces_what_only_looks_the_same(now: Any, before: Any, target: str, open_kind: OpenStore) -> None:
    source, copied = open_kind("memory"), open_kind(target)
    for store, value in ((source, now), (copied, before)):
        Searcher(Batches(), store).add(["one"], ids=["a"], metadatas=[{"v": [{"deep": value}]}])
    assert copy_store(source, copied) == 1
    assert repr(copied.get(["a"])[0].metadata) == repr({"v": [{"deep": now}]})
    assert copy_store(source, copied) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("now", "before"), LOOK_ALIKES)
def test_a_source_replaces_metadata_that_only_look_the_same(
    now: Any, before: Any, kind: str, open_kind: OpenStore
) -> None:
    store = open_kind(kind)
    for value in (before, now):
        metadata = {"source": "a", "v": value}
        replace_sources(Searcher(Batches(), store), ["one"], source_key="source", ids=[None], metadatas=[metadata])
    assert [repr(record.metadata["v"]) for record in store.records()] == [repr(now)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_strings_in_a_list(kind: str, open_kind: OpenStore) -> None:
    store = open_kind(kind)
    Searcher(Batches(), store).add(TEXTS, ids=list("1234567"))
    for ask in (store.get, store.delete, Searcher(Batches(), store).delete):
        with pytest.raises(TypeError, match="got the string '12'"):
            ask("12")
        with pytest.raises(TypeError, match="got 1 at position 1"):
            ask(["2", 1])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"id at position 1.*not valid Unicode"):
            ask(["2", "\ud800"])
    assert store.count() == 7


EVERYTHING: list[Any] = [
    {}, {"$and": [{}]}, {"$or": [{}]}, {"$and": [{"$and": [{}, {}]}, {}]}, {"$or": [{"a": 1}, {}]},
    {"$not": {"$or": [{"a": {"$in": []}}]}},
    {"a": {"$nin": []}}, {"$not": {"$not": {}}},
]  # fmt: skip


@pytest.mark.parametrize("filter_", EVERYTHING)
@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_says_nothing_finds_everything_and_deletes_nothing(
    kind: str, filter_: Any, open_kind: OpenStore
) -> None:
    store, encoder = open_kind(kind), Batches()
    searcher = Searcher(encoder, store)
    searcher.add(TEXTS)
    assert store.count(filter_) == len(searcher.search("text", filter=filter_, k=9)) == 7
    retriever = M3HybridRetriever(encoder=encoder, store=store)
    nodes = NodeRetriever(encoder=encoder, store=store)
    for delete in (searcher.delete, retriever.delete):
        with pytest.raises(ValueError, match="matches everything"):
            delete(filter=filter_)
    with pytest.raises(ValueError, match="matches everything"):
        store.delete_where(filter_)
    with pytest.raises(ValueError, match="matches everything"):
        nodes.delete_nodes(filters=filter_)
    assert store.count() == 7


def test_a_folder_that_is_full_says_what_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "s") as store:
        monkeypatch.setattr("m3_integrations.store.edge_folder._RESERVE_BYTES", 1 << 62)
        with pytest.raises(IncompleteAddError, match="0 of 7") as failed:
            Searcher(Batches(), store).add(TEXTS)
        assert "of free disk space are needed" in str(failed.value.__cause__)
        monkeypatch.undo()
        Searcher(Batches(), store).add(TEXTS, ids=failed.value.ids)
        assert there(store).keys() == set(failed.value.ids)
