"""Columns of a data frame are read by position, and what is no column is refused wherever a column is asked for."""

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import Searcher, Store, open_store
from m3_integrations.indexing.files import find_files
from m3_integrations.indexing.reading import read_entries
from m3_integrations.store.values import check_value
from tests.fakes import FakeEncoder

TEXTS = ["alpha", "beta", "gamma"]


class Column:
    """Like a pandas Series that was sorted: iteration is by position, and `[i]` by label."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = list(values)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, label: int) -> Any:
        return self.values[-1 - label]


class Table:
    """Like a data frame: iteration gives the names of its columns."""

    columns = ("text", "n")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(None if request.param == "memory" else tmp_path / "store") as store:
        yield store


@pytest.fixture
def searcher() -> Iterator[Searcher]:
    with Searcher(FakeEncoder(), open_store()) as searcher:
        searcher.add(TEXTS, ids=["a", "b", "doc1"])
        yield searcher


def test_columns_with_labels_are_read_by_position(store: Store) -> None:
    vectors = FakeEncoder().encode(TEXTS)
    metadatas, flags = [{"n": i} for i in range(3)], Column([False, True, False])
    ids: Any = Column(["a", "b", "c"])
    store.upsert(ids, Column(TEXTS), Column(metadatas), vectors, is_pooled=flags)  # type: ignore[arg-type]
    found = store.get(["a", "b", "c"], with_vectors=True)
    assert [(r.id, r.text, r.metadata) for r in found] == list(zip(ids, TEXTS, metadatas, strict=True))
    assert [r.is_pooled for r in found] == list(flags)
    for row, record in enumerate(found):
        assert record.vectors is not None
        np.testing.assert_array_equal(record.vectors.dense, vectors[row].dense)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, wrong: s.add(wrong),
        lambda s, wrong: s.add(["x"], ids=wrong),
        lambda s, wrong: s.delete(wrong),
        lambda s, wrong: s.store.get(wrong),
        lambda s, wrong: s.store.upsert(wrong, ["x"], [{}], s.encoder.encode(["x"])),
        lambda s, wrong: s.store.upsert(["x"], wrong, [{}], s.encoder.encode(["x"])),
        lambda s, wrong: s.store.upsert(["x"], ["x"], wrong, s.encoder.encode(["x"])),
        lambda s, wrong: s.search("alpha", ids=wrong),
        lambda s, wrong: s.search_batch(wrong),
    ],
)
def test_a_table_is_no_column(call: Callable[[Searcher, Any], Any], searcher: Searcher) -> None:
    with pytest.raises(TypeError, match="must be one column, got a Table: pass"):
        call(searcher, Table())
    assert searcher.store.count() == 3


def test_the_keys_of_a_mapping_may_be_ids(searcher: Searcher) -> None:
    assert [record.id for record in searcher.store.get({"b": 1, "a": 2})] == ["b", "a"]  # type: ignore[arg-type]
    assert searcher.delete({"a": 1}) == 1  # type: ignore[arg-type]


def test_a_table_of_metadata_is_answered_with_how_to_pass_it(searcher: Searcher) -> None:
    with pytest.raises(TypeError, match=r"such as df\.to_dict\('records'\)"):
        searcher.add(["x", "y"], metadatas=Table())  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["encode", "encode_batches", "score", "tokenize"])
def test_the_encoder_takes_no_table(encoder: Any, call: str) -> None:
    with pytest.raises(TypeError, match="texts must be one column, got a Table: pass"):
        getattr(encoder, call)(*(["question"] if call == "score" else []), Table())


def test_one_string_is_not_the_ids_of_its_letters(searcher: Searcher) -> None:
    for call in (lambda: searcher.search("gamma", ids="ab"), lambda: searcher.spans("gamma", "ab")):
        with pytest.raises(TypeError, match=r"got the string 'ab': pass \['ab'\]"):
            call()
    assert [hit.id for hit in searcher.search("gamma", ids=Column(["doc1"]))] == ["doc1"]  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "7D", "10us"])
@pytest.mark.parametrize("number", [2**62, 2**63 - 1, -(2**62), 1 - 2**63])
def test_a_date_that_is_too_far_is_refused_in_every_unit(unit: str, number: int) -> None:
    """numpy's own conversion to microseconds overflows, and gives a date near 1970."""
    with pytest.raises(ValueError, match="dates have years 1 to 9999"):
        check_value(np.array([number]).view(f"datetime64[{unit}]")[0], "the value")


def test_the_first_and_last_dates_are_kept() -> None:
    for text in ("0001-01-01", "9999-12-31"):
        assert check_value(np.datetime64(text), "it") == date.fromisoformat(text)
    for text in ("0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"):
        assert check_value(np.datetime64(text), "it") == datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "moment", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59.999999-23:59"]
)
def test_a_date_that_is_in_range_only_in_its_zone_is_explained(moment: str, searcher: Searcher) -> None:
    missing = searcher.explain_missing("alpha", "a", filter={"until": {"$gte": moment}})
    (clause,) = missing.excluded_by
    said = clause.said["until"]["$gte"]
    assert datetime.fromisoformat(said) == datetime.fromisoformat(moment)


def test_a_comparison_with_a_list_names_the_way_out(searcher: Searcher) -> None:
    with pytest.raises(ValueError, match=r"\$in"):
        searcher.search("alpha", filter={"year": np.array([1, 2])})


def test_an_empty_page_is_no_failure(tmp_path: Path) -> None:
    for name, content in (("empty.html", b""), ("mark.html", b"\xef\xbb\xbf")):
        page = tmp_path / name
        assert [entry.text for entry in read_entries(page, content)] == [""]


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl: a pipe or a device cannot be indexed"):
        find_files([tmp_path / "pipe.jsonl"])
