"""Texts in place of what their source had: what is encoded, what is kept, what is deleted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import M3Vectors, Searcher, Store, open_store
from m3_integrations.search import IncompleteAddError, matching_records, replace_sources
from m3_integrations.store.server import ServerStore
from tests.fakes import DIM, FakeEncoder

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]


@pytest.fixture
def fake() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture(params=["memory", "folder", "local"])
def searcher(request: pytest.FixtureRequest, fake: FakeEncoder, tmp_path: Path) -> Iterator[Searcher]:
    if request.param == "local":
        with ServerStore("local", client=QdrantClient(":memory:")) as store:
            yield Searcher(fake, store)
    else:
        with open_store(tmp_path / "store" if request.param == "folder" else None) as other:
            yield Searcher(fake, other)


def replace(searcher: Searcher, *rows: tuple[str, Any], ids: Sequence[str | None] | None = None) -> list[str]:
    """Rows are a text and its source, or all its metadata."""
    return replace_sources(
        searcher,
        [text for text, _ in rows],
        source_key="source",
        ids=ids or [None] * len(rows),
        metadatas=[source if isinstance(source, dict) else {"source": source} for _, source in rows],
    )


def test_a_key_that_no_filter_can_name_is_refused(fake: FakeEncoder) -> None:
    with pytest.raises(ValueError, match="source_key must be a key that filters can name"):
        replace_sources(Searcher(fake, open_store()), ["a"], source_key="$s", ids=[None], metadatas=[{"$s": "x"}])


def held(store: Store) -> list[tuple[str, Any]]:
    return sorted((record.text, record.metadata["source"]) for record in store.records())


def encoded(fake: FakeEncoder) -> list[str]:
    texts = [text for _, text in fake.encoded]
    fake.encoded.clear()
    return texts


def vectors_of(store: Store, id_: str) -> M3Vectors:
    (record,) = store.get([id_], with_vectors=True)
    assert record.vectors is not None
    return record.vectors


def test_the_same_call_again_changes_and_encodes_nothing(searcher: Searcher, fake: FakeEncoder) -> None:
    rows = [("one", "a"), ("two", "a"), ("one", "b"), ("one", "a")]
    ids = replace(searcher, *rows)
    assert (len(set(ids)), encoded(fake)) == (4, ["one", "two", "one", "one"])
    assert replace(searcher, *rows) == ids
    assert (held(searcher.store), encoded(fake)) == (sorted(rows), [])


def test_only_what_is_new_is_encoded_and_what_a_source_has_no_longer_goes(
    searcher: Searcher, fake: FakeEncoder
) -> None:
    replace(searcher, ("one", "a"), ("two", "a"), ("three", "b"))
    searcher.add(["no source", "a list"], metadatas=[{"source": None}, {"source": ["a", "x"]}])
    encoded(fake)
    replace(searcher, ("two", "a"), ("new", "a"))
    assert encoded(fake) == ["new"]
    kept = [(record.text, record.metadata["source"]) for record in searcher.store.records()]
    expected = [("two", "a"), ("new", "a"), ("three", "b"), ("no source", None), ("a list", ["a", "x"])]
    assert sorted(kept, key=str) == sorted(expected, key=str)


def test_a_text_with_other_metadata_or_another_id_keeps_its_vectors(searcher: Searcher, fake: FakeEncoder) -> None:
    (old,) = replace(searcher, ("one", {"source": "a", "page": 1}))
    before = vectors_of(searcher.store, old)
    encoded(fake)
    assert replace(searcher, ("one", {"source": "a", "page": 2})) == [old]
    assert [record.metadata for record in searcher.store.records()] == [{"source": "a", "page": 2}]
    assert replace(searcher, ("one", {"source": "a", "page": 3}), ids=["mine"]) == ["mine"]
    (record,) = searcher.store.records()
    assert (record.id, record.metadata, encoded(fake)) == ("mine", {"source": "a", "page": 3}, [])
    after = vectors_of(searcher.store, "mine")
    assert np.array_equal(after.dense, before.dense)
    assert after.lexical[0].to_dict() == before.lexical[0].to_dict()
    assert np.array_equal(after.multi_vector[0], before.multi_vector[0])


def test_metadata_of_another_type_are_other_metadata(searcher: Searcher) -> None:
    for value in (1, True, 1.0):
        (id_,) = replace(searcher, ("a text", {"source": "s", "v": value}))
        assert repr(searcher.store.get([id_])[0].metadata["v"]) == repr(value)


def test_random_ids_of_a_script_that_runs_again_do_not_double_anything(searcher: Searcher, fake: FakeEncoder) -> None:
    texts = [f"text {i}" for i in range(60)]  # more than are copied at a time
    for run in range(3):
        replace(searcher, *((text, "a") for text in texts), ids=[f"{run}-{i}" for i in range(60)])
        assert sorted(record.id for record in searcher.store.records()) == sorted(f"{run}-{i}" for i in range(60))
        assert len(encoded(fake)) == (60 if run == 0 else 0)


def test_a_record_under_the_same_id_with_another_text_is_replaced(searcher: Searcher, fake: FakeEncoder) -> None:
    searcher.add(["old"], ids=["x"], metadatas=[{"source": "elsewhere"}])
    encoded(fake)
    replace(searcher, ("new", "a"), ids=["x"])
    assert (held(searcher.store), encoded(fake)) == ([("new", "a")], ["new"])


def test_two_texts_that_change_places_are_not_encoded_again(searcher: Searcher, fake: FakeEncoder) -> None:
    replace(searcher, ("one", "a"), ("two", "a"), ids=["x", "y"])
    of_one = vectors_of(searcher.store, "x").dense
    encoded(fake)
    replace(searcher, ("two", "a"), ("one", "a"), ids=["x", "y"])
    assert [record.text for record in searcher.store.get(["x", "y"])] == ["two", "one"]
    assert encoded(fake) == []
    assert np.array_equal(vectors_of(searcher.store, "y").dense, of_one)


def test_a_source_may_be_a_path_or_a_number(searcher: Searcher) -> None:
    for _ in range(2):
        replace(searcher, ("one", Path("folder/a.txt")), ("two", 7))
    assert sorted(held(searcher.store), key=str) == [("one", "folder/a.txt"), ("two", 7)]


def test_what_cannot_be_kept_is_refused_before_anything_is_changed(searcher: Searcher, fake: FakeEncoder) -> None:
    replace(searcher, ("one", "a"), ("two", "a"))
    encoded(fake)
    wrong: list[Any] = [None, True, 1.5, ["a"], {}]
    for source in wrong:
        with pytest.raises(ValueError, match="metadata of text 1 must have its source"):
            replace(searcher, ("new", "a"), ("x", {"source": source}))
    with pytest.raises(ValueError, match=r"metadata of text 0 must have its source.*'source'.*got None"):
        replace(searcher, ("new", {"origin": "a"}))
    with pytest.raises(ValueError, match="got 'x' twice"):
        replace(searcher, ("new", "a"), ("newer", "a"), ids=["x", "x"])
    with pytest.raises(ValueError, match="every text needs one id"):
        replace(searcher, ("new", "a"), ids=["x", "y"])
    with pytest.raises(ValueError, match="not valid Unicode"):
        replace(searcher, ("one", {"source": "a", "page": 2}), ("\ud800", "a"))
    with pytest.raises(ValueError, match="cannot have b'x'"):
        replace(searcher, ("one", {"source": "a", "page": 2}), ("two", {"source": "a", "bytes": b"x"}))
    assert (held(searcher.store), encoded(fake)) == ([("one", "a"), ("two", "a")], [])
    assert all(record.metadata == {"source": "a"} for record in searcher.store.records())
    assert replace(searcher) == []


def test_another_models_vectors_are_not_kept(searcher: Searcher) -> None:
    replace(searcher, ("one", "a"))
    other = FakeEncoder()
    other.fingerprint = "07e5"
    with pytest.raises(ValueError, match="holds vectors of the model fa4e"):
        replace(Searcher(other, searcher.store), ("one", {"source": "a", "page": 2}))
    assert [record.metadata for record in searcher.store.records()] == [{"source": "a"}]


def test_a_call_that_fails_midway_leaves_too_much_and_the_next_one_finishes(
    searcher: Searcher, fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(searcher, ("old", "a"), ("kept", "a"))
    rows = [("kept", "a"), ("new", "a"), ("newer", "a")]
    encode = fake.encode

    def failing(texts: Sequence[str], **options: Any) -> M3Vectors:
        if "newer" in texts:
            raise MemoryError
        return encode(texts, **options)

    monkeypatch.setattr(fake, "encode", failing)
    with pytest.raises(IncompleteAddError):
        replace(searcher, *rows)
    assert [text for text, _ in held(searcher.store)] == ["kept", "new", "old"]
    monkeypatch.undo()
    encoded(fake)
    replace(searcher, *rows)
    assert (held(searcher.store), encoded(fake)) == (sorted(rows), ["newer"])


@pytest.mark.parametrize(
    ("fails_at", "added"), [(0, [3]), (1, [2, 3]), (2, [0, 2, 3]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3, 4])]
)
def test_the_error_of_a_call_that_moves_and_adds_has_the_ids_of_all_its_texts(
    fails_at: int, added: list[int], searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six texts one is there, one only gets other metadata, and four are encoded one by one: any may fail."""
    calls, upsert = list[int](), searcher.store.upsert
    (kept, _) = replace(searcher, ("kept", "a"), ("moved", {"source": "a", "n": 1}))

    def failing(ids: Sequence[str], *columns: Any, **flags: Any) -> None:
        calls.append(len(ids))
        if len(calls) - 1 == fails_at:
            raise OSError("the disk is full")
        upsert(ids, *columns, **flags)

    rows = [("new 1", "a"), ("new 2", "a"), ("moved", {"source": "a", "n": 2}), ("kept", "a"), ("3", "a"), ("4", "a")]
    monkeypatch.setattr(searcher.store, "upsert", failing)
    with pytest.raises(IncompleteAddError, match=f"{len(added)} of 6 texts were added") as failed:
        replace(searcher, *rows)
    ids = failed.value.ids
    assert (len(ids), ids[3]) == (6, kept)
    assert failed.value.added == [ids[i] for i in added]
    assert replace(searcher, *rows, ids=ids) == ids
    assert len(list(searcher.store.records())) == 6


def test_all_records_that_match_are_found_and_no_other(searcher: Searcher) -> None:
    searcher.add([f"text {i}" for i in range(300)], metadatas=[{"n": i % 3} for i in range(300)])
    found = matching_records(searcher.store, DIM, {"n": {"$in": [0, 2]}})
    assert sorted(record.text for record in found) == sorted(f"text {i}" for i in range(300) if i % 3 != 1)
    assert matching_records(searcher.store, DIM, {"n": 7}) == []
