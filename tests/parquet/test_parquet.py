"""Parquet files of encoded records: what is written comes back, into any store, and what is wrong is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from m3_integrations import M3Vectors, Record, Store, open_store
from m3_integrations.cli import app
from m3_integrations.parquet import EncodedBy, LoadReport, ParquetFolder, Rows, as_table, load_parquet, record_key
from m3_integrations.store.values import check_metadata
from m3_integrations.vectors import MODES, Mode
from tests.store.oracle import add, records

METADATA: list[dict[str, Any]] = [
    {},
    {"day": date(2024, 5, 1), "at": datetime(2024, 5, 1, 2, tzinfo=UTC), "tags": ["a", None, 3], "loc": {"page": 1.5}},
    {"big": 2**70, "odd": 0.1 + 0.2, "yes": True, "one": 1, "float": 1.0, "text": "null\u2028\x00"},
]


def encoded_by(modes: tuple[Mode, ...] = MODES, fingerprint: str = "one", max_length: int = 512) -> EncodedBy:
    return EncodedBy(fingerprint, modes, "cls", max_length, model="m")


def rows_of(added: Sequence[Record]) -> Rows:
    metadatas = [check_metadata(record.metadata, record.id) for record in added]
    return Rows([record.id for record in added], [record.text for record in added], metadatas)


def vectors_of(added: Sequence[Record], modes: Sequence[Mode] = MODES) -> M3Vectors:
    return M3Vectors.concatenate([record.vectors.select(modes) for record in added if record.vectors is not None])


def write(folder: Path, name: str, added: Sequence[Record], by: EncodedBy | None = None) -> Path:
    by = by or encoded_by()
    into = ParquetFolder(folder)
    into.prepare()
    into.write(name, as_table(rows_of(added), vectors_of(added, by.modes), by))
    return folder / name


def made(n: int, prefix: str = "r") -> list[Record]:
    random = np.random.default_rng(3)
    made = records(random, [f"{prefix}{i}" for i in range(n)])
    kept = [METADATA[i % len(METADATA)] for i in range(n)]
    return [Record(r.id, r.text, metadata, r.vectors) for r, metadata in zip(made, kept, strict=True)]


def assert_same_store(store: Store, other: Store) -> None:
    ids = sorted(record.id for record in other.records())
    ours, theirs = store.get(ids, with_vectors=True), other.get(ids, with_vectors=True)
    assert (store.count(), store.fingerprint) == (len(ids), other.fingerprint)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.id, a.text, repr(sorted(a.metadata.items()))) == (b.id, b.text, repr(sorted(b.metadata.items())))
        assert a.vectors is not None
        assert b.vectors is not None
        np.testing.assert_array_equal(a.vectors.dense, b.vectors.dense)
        np.testing.assert_array_equal(a.vectors.lexical.indices, b.vectors.lexical.indices)
        np.testing.assert_array_equal(a.vectors.lexical.values, b.vectors.lexical.values)
        np.testing.assert_array_equal(a.vectors.multi_vector.flat, b.vectors.multi_vector.flat)


@pytest.mark.parametrize("where", [None, "store"])
def test_a_loaded_store_is_the_one_that_the_records_were_added_to(where: str | None, tmp_path: Path) -> None:
    added = made(130)
    for i in range(0, 130, 40):
        write(tmp_path / "out", f"000001-{i:03d}.parquet", added[i : i + 40])
    with open_store(where and tmp_path / where) as store, open_store(where and tmp_path / "other") as other:
        other.bind("one")
        add(other, added)
        assert load_parquet([tmp_path / "out"], store) == LoadReport(130, 0)
        assert_same_store(store, other)
        assert load_parquet([tmp_path / "out"], store) == LoadReport(0, 130)


@pytest.mark.parametrize("modes", [("dense",), ("lexical",), ("dense", "multi_vector")])
def test_only_the_modes_that_were_encoded_are_there(modes: tuple[Mode, ...], tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", added := made(5), encoded_by(modes))
    with open_store() as store:
        load_parquet([tmp_path], store)
        assert store.modes == modes
        (found,) = store.get(["r1"], with_vectors=True)
        assert found.vectors is not None
        assert found.vectors.modes == modes
    assert pq.read_schema(tmp_path / "a.parquet").names[:5] == ["id", "text", "metadata", "exact", "key"]
    assert len(added) == 5


def test_a_store_without_token_vectors_takes_the_others(tmp_path: Path) -> None:
    write(tmp_path / "out", "a.parquet", made(3))
    with open_store(tmp_path / "store", multi_vector="none") as store:
        assert load_parquet([tmp_path / "out"], store).n_loaded == 3
        assert store.modes == ("dense", "lexical")


class Failing:
    """A store that fails at an upsert, once."""

    def __init__(self, store: Store, at: int) -> None:
        self._store, self._left = store, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def upsert(self, ids: Sequence[str], *rest: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError("the disk is full")
        self._store.upsert(ids, *rest)


def test_an_interrupted_load_goes_on_and_keeps_the_stores_own_error(tmp_path: Path) -> None:
    write(tmp_path / "out", "a.parquet", made(130))
    with open_store(tmp_path / "store") as store:
        with pytest.raises(OSError, match="the disk is full"):
            load_parquet([tmp_path / "out"], Failing(store, 3))  # type: ignore[arg-type]
        assert store.count() == 100
        assert load_parquet([tmp_path / "out"], store) == LoadReport(30, 100)


def test_of_two_records_with_one_id_the_later_run_counts(tmp_path: Path) -> None:
    (record,) = made(1)
    changed = Record(record.id, "another text", {"a": 1}, record.vectors)
    write(tmp_path, "000002-a.parquet", [changed])
    write(tmp_path, "000001-b.parquet", [record])
    with open_store() as store:
        load_parquet([tmp_path], store)
        assert [(r.text, r.metadata) for r in store.records()] == [("another text", {"a": 1})]


def test_what_is_done_is_known_by_text_and_metadata_too(tmp_path: Path) -> None:
    added = made(7)
    write(tmp_path, "000003-a.parquet", added[:4])
    write(tmp_path, "000004-b.parquet", added[4:])
    done = ParquetFolder(tmp_path).read_done()
    rows = rows_of(added)
    keys = [record_key(*row) for row in zip(rows.ids, rows.texts, rows.metadatas, strict=True)]
    assert (done.run, done.encoded_by) == (4, encoded_by())
    assert sorted(keys) == [bytes(key).ljust(16, b"\0") for key in done.keys]
    others: list[tuple[str, str, Mapping[str, Any]]] = [("r1", "b", {}), ("r", "a", {}), ("r1", "a", {"x": 1})]
    assert len({record_key("r1", "a", {}), *(record_key(*other) for other in others)}) == 4
    assert (
        len({record_key("a", "b", {"v": value}) for value in (1, True, 1.0, "1", date(2024, 5, 1), "2024-05-01")}) == 6
    )
    assert record_key("a", "b", {"v": 1, "w": 2}) == record_key("a", "b", {"w": 2, "v": 1})


def test_what_is_not_whole_has_no_name_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = ParquetFolder(tmp_path)
    (tmp_path / ".000001-a.parquet.part").write_bytes(b"PAR1")  # what a kill leaves
    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(KeyboardInterrupt):
        folder.write("000001-a.parquet", as_table(rows_of(made(1)), vectors_of(made(1)), encoded_by()))
    assert folder.files() == []
    assert folder.read_done().run == 0
    assert [path.name for path in tmp_path.iterdir()] == [".000001-a.parquet.part"]


def test_files_of_two_models_or_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", made(2))
    for other in (encoded_by(fingerprint="two"), encoded_by(max_length=8), encoded_by(("dense",))):
        write(tmp_path, "b.parquet", made(2, "s"), other)
        with open_store() as store:
            with pytest.raises(ValueError, match=r"b\.parquet holds vectors of the model"):
                load_parquet([tmp_path], store)
            assert store.count() == 0
        with pytest.raises(ValueError, match=r"They cannot be compared"):
            ParquetFolder(tmp_path).read_done()


def test_a_store_of_another_model_or_of_nobody_knows_which_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", made(2))
    with open_store() as store:
        store.bind("two")
        with pytest.raises(ValueError, match="holds vectors of the model two, not of one"):
            load_parquet([tmp_path], store)
    with open_store() as store:
        add(store, made(1))
        with pytest.raises(ValueError, match="holds vectors of an unknown model"):
            load_parquet([tmp_path], store)


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", made(60))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    for content in (bytes(flipped), whole[:-9], whole[: len(whole) // 2], b"", b"PAR1"):
        path.write_bytes(content)
        with open_store() as store, pytest.raises(ValueError, match=r"a\.parquet is damaged, or not a Parquet file"):
            load_parquet([path], store)


def test_what_this_package_did_not_write_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    with open_store() as store, pytest.raises(ValueError, match="was not written by this package"):
        load_parquet([tmp_path], store)
    table = as_table(rows_of(made(1)), vectors_of(made(1)), encoded_by())
    pq.write_table(table.drop_columns(["tokens"]), tmp_path / "a.parquet")
    with open_store() as store, pytest.raises(ValueError, match="must have the columns of its modes"):
        load_parquet([tmp_path], store)
    later = {b"m3_integrations": table.schema.metadata[b"m3_integrations"].replace(b'"version": 1', b'"version": 2')}
    pq.write_table(table.replace_schema_metadata(later), tmp_path / "a.parquet")
    with open_store() as store, pytest.raises(ValueError, match="format version 2, and this m3-integrations reads 1"):
        load_parquet([tmp_path], store)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"{", "is damaged: Expecting"),
        (b"[1]", "was not written by this package"),
        (b'{"format": "m3_integrations vectors", "version": 1}', "is damaged: KeyError"),
        (b'{"format": "m3_integrations vectors"}', "has format version None"),
    ],
)
def test_damaged_settings_of_vectors_are_refused_with_the_file(said: bytes, message: str, tmp_path: Path) -> None:
    table = as_table(rows_of(made(1)), vectors_of(made(1)), encoded_by())
    pq.write_table(table.replace_schema_metadata({b"m3_integrations": said}), tmp_path / "a.parquet")
    with open_store() as store, pytest.raises(ValueError, match=rf"a\.parquet {message}"):
        load_parquet([tmp_path], store)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("tokens", pa.array([1, 1], pa.int32()), "do not fit the numbers of tokens"),
        ("dense", pa.array([[1.0], [1.0, 0.0]], pa.list_(pa.float32())), r"dense vectors of lengths \[1, 2\]"),
        ("dense", pa.array([[1.0], None], pa.list_(pa.float32())), "a record without dense"),
        ("dense", pa.array([[float("nan")]] * 2, pa.list_(pa.float32())), "infinite or NaN"),
        ("lexical_values", pa.array([[1.0], []], pa.list_(pa.float32())), "rising token ids"),
        ("lexical_indices", None, "rising token ids"),
        ("metadata", pa.array(["{}", "{"]), "metadata that cannot be read"),
        ("id", pa.array(["a", None]), "without id, text or metadata"),
    ],
)
def test_columns_that_do_not_fit_each_other_are_refused(
    column: str, values: pa.Array | None, message: str, tmp_path: Path
) -> None:
    added = [record for record in made(20) if record.vectors is not None and len(record.vectors.lexical[0]) > 1][:2]
    table = as_table(rows_of([Record(r.id, r.text, {}, r.vectors) for r in added]), vectors_of(added), encoded_by())
    if values is None:  # the same tokens, falling
        lists = [row[::-1] for row in table.column(column).to_pylist()]
        values = pa.array(lists, table.schema.field(column).type)
    table = table.set_column(table.schema.names.index(column), table.schema.field(column), values)
    pq.write_table(table, tmp_path / "a.parquet")
    with open_store() as store, pytest.raises(ValueError, match=message):
        load_parquet([tmp_path], store)


def test_paths_that_lead_to_nothing_are_refused(tmp_path: Path) -> None:
    with open_store() as store:
        with pytest.raises(FileNotFoundError, match=r"no file or folder .*gone"):
            load_parquet([tmp_path / "gone"], store)
        with pytest.raises(ValueError, match="no Parquet file to load"):
            load_parquet([tmp_path], store)
        with pytest.raises(TypeError, match="paths must be a list"):
            load_parquet(str(tmp_path), store)


def test_a_uri_is_a_place_too(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", made(3))
    with open_store() as store:
        assert load_parquet([f"file://{tmp_path}"], store).n_loaded == 3


def test_the_command_loads_once_and_says_what_it_did(tmp_path: Path) -> None:
    write(tmp_path / "out", "a.parquet", made(3))
    line = ["load", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    mistyped = CliRunner().invoke(app, ["load", str(tmp_path / "oot"), *line[2:]])
    assert (mistyped.exit_code, (tmp_path / "store").exists()) == (1, False)
    assert "no file or folder" in mistyped.stderr
    for said in ("3 records loaded, 0 there already", "0 records loaded, 3 there already"):
        result = CliRunner().invoke(app, line)
        assert (result.exit_code, said in result.stdout) == (0, True), result.output
    assert "holds 3 records" in result.stdout


def test_what_cannot_be_loaded_makes_no_store(tmp_path: Path) -> None:
    write(tmp_path / "out", "a.parquet", made(3))
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    for named, options, said in (
        ("junk.parquet", [], "junk.parquet is damaged, or not a Parquet file"),
        ("empty", [], "there is no Parquet file to load"),
        ("out", ["--multi-vector", "foo"], "multi_vector must be one of"),
    ):
        result = CliRunner().invoke(app, ["load", str(tmp_path / named), "--store", str(tmp_path / "new"), *options])
        assert (result.exit_code, said in result.stderr) == (1, True), result.output
        assert not (tmp_path / "new").exists()
