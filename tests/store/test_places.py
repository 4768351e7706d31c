"""Where stores are opened: what a place means, who has it, folders in which nothing may be written, earlier formats."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_integrations import Store, open_store
from m3_integrations.store import copy_store
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.memory import MemoryStore
from m3_integrations.store.qdrant import QdrantStore
from m3_integrations.store.server import ServerStore
from tests.store.conftest import begun_in_version_2
from tests.store.oracle import add, brute_force, records, vectors


def test_memory_has_two_names() -> None:
    for where in (None, ":memory:", ":MEMORY:"):
        with open_store(where) as store:
            assert isinstance(store, MemoryStore)
    with pytest.raises(TypeError, match="in memory has no setting token_pooling"):
        open_store(":memory:", token_pooling=2)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("", ValueError, "where is empty"),
        ("  ", ValueError, "where is empty"),
        ("localhost:6333", ValueError, r"'http://localhost:6333' for a server, '\./localhost:6333' for a folder"),
        ("10.0.0.7:6334/", ValueError, "may be a server or a folder"),
        ("[::1]:6333", ValueError, "may be a server or a folder"),
        ("localhost:6333/collections", ValueError, "may be a server or a folder"),
        ("http:/localhost", ValueError, "must begin with http"),
        ("HTTPS:localhost:6333", ValueError, "must begin with http"),
        ("http://", ValueError, "must name a host, got 'http://'"),
        ("https://:6333/x", ValueError, "must name a host"),
        ("http://[::1", ValueError, "must name a host"),
        ("https://a b", ValueError, "must name a host"),
        (["http://"], ValueError, "must name a host"),
        ("ftp://host", ValueError, "must begin with http"),
        ("~nobody-of-this-name/x", ValueError, "the home folder in"),
        (b"x", TypeError, "a folder, a URL or a list of URLs"),
        (5, TypeError, "a folder, a URL or a list of URLs"),
    ],
)
def test_a_slip_makes_no_store(
    where: Any, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_store(where)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_may_have_any_name_that_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for where in ("./localhost:6333", Path("host:1"), "a b", "ключ"):
        open_store(where).close()
        assert Path(where).is_dir()


def test_home_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for where in ("~/one", Path("~/two")):
        with open_store(where) as store:
            assert isinstance(store, EdgeStore)
            assert store.folder.parent == tmp_path / "home"


def test_the_scheme_of_a_url_may_be_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_integrations.store.cluster.QdrantClient", lambda **_: QdrantClient(":memory:"))
    monkeypatch.setattr("m3_integrations.store.served.is_m3_serve", lambda _: False)
    with open_store("HTTP://host:6333") as store:
        assert isinstance(store, ServerStore)


def test_a_folder_is_free_again_when_its_store_is_closed_or_forgotten(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    with pytest.raises(BlockingIOError, match=r"in this process: use that store object, or close\(\) it"):
        open_store(tmp_path / "x" / ".." / "s")
    store.close()
    store = open_store(tmp_path / "s")
    del store
    open_store(tmp_path / "s").close()


@pytest.fixture
def read_only(tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store's folder in which nothing may be written; the superuser needs to be told so."""
    folder = tmp_path / "s"
    with open_store(folder) as store:
        store.bind("m")
        add(store, records(random, [f"r{i}" for i in range(60)]))
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **given: path != folder and may(path, mode, **given))
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_folder_in_which_nothing_may_be_written_opens_for_reading(
    read_only: Path, random: np.random.Generator, tmp_path: Path
) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in read_only.rglob("*")}
    with open_store(read_only) as store, open_store(read_only) as another:
        alive = {record.id: record for record in store.get([f"r{i}" for i in range(60)], with_vectors=True)}
        assert len(alive) == another.count() == 60
        store.bind("m")
        with pytest.raises(ValueError, match="of the model m, not of other"):
            store.bind("other")
        query = vectors(random, 1)
        for filter_ in ({}, {"size": {"$gt": 1}}):
            expected = brute_force(alive, query, filter_)["dense"]
            found = store.candidates(query, {"dense": 100}, filter_)["dense"]
            assert set(found.ids) == set(expected)
        for change in (
            lambda: add(store, records(random, ["new"])),
            lambda: store.delete(["r1"]),
            lambda: store.delete_where({"size": {"$exists": True}}),
            store.optimize,
        ):
            with pytest.raises(PermissionError, match="opened for reading"):
                change()
        store.flush()
        assert store.count() == 60
        with open_store(tmp_path / "copy") as copy:
            assert copy_store(store, copy) == 60
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in read_only.rglob("*")} == before


def test_a_read_only_folder_that_is_being_changed_is_not_opened(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    code = (
        "import sys; from m3_integrations import open_store\n"
        f"store = open_store({str(folder)!r}); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    with pytest.raises(BlockingIOError, match="open already in another process"):
        open_store(folder)
    other.communicate()
    open_store(folder).close()


def as_in_the_first_format(payload: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as one text, numbers in two halves each, no dates, no terms of what is nested."""
    numbers = {f"k{key}": [{"high": 1, "low": 2}] for key, value in metadata.items() if type(value) in {int, float}}
    kept: dict[str, Any] = {name: payload[name] for name in ("id", "text", "is_pooled") if name in payload}
    return {**kept, "metadata": json.dumps(metadata), "terms": ['["old"]'], "numbers": numbers}


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_folder_of_the_first_format_opens_and_goes_on(
    interrupted: bool, tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = records(random, [f"r{i}" for i in range(300)])
    for record in added:
        record.metadata["day"], record.metadata["at"] = "2024-05-01", {"page": 0.1 + 0.2}  # type: ignore[index]
    with begun_in_version_2(tmp_path / "s") as store:
        add(store, added)
        put_into_the_first_format(store, {record.id: dict(record.metadata) for record in added})
        store._index("numbers.ksize[].high")
    file = tmp_path / "s" / "m3-store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 1}))
    if interrupted:
        written, overwrite = list[int](), EdgeStore._overwrite

        def fail(self: EdgeStore, payloads: Any) -> None:
            written.append(len(payloads))
            overwrite(self, payloads)
            raise OSError("the power went")

        monkeypatch.setattr(EdgeStore, "_overwrite", fail)
        with pytest.raises(OSError, match="the power went"):
            EdgeStore(tmp_path / "s")
        monkeypatch.undo()
        assert json.loads(file.read_text())["version"] == 1
    with EdgeStore(tmp_path / "s") as store:
        assert json.loads(file.read_text())["version"] == 2
        assert store._indexed_paths == {"terms"}
        assert_whole(store, {record.id: record for record in added})
    with EdgeStore(tmp_path / "s") as store:
        assert_whole(store, {record.id: record for record in added})


def test_what_the_first_format_took_and_this_one_refuses_is_kept(tmp_path: Path, random: np.random.Generator) -> None:
    deep: Any = "x"
    for _ in range(40):
        deep = {"a": deep}
    odd: dict[str, Any] = {"deep": deep, "large": [2**1500, -(2**1500), 2**1023]}
    (record,) = records(random, ["r"])
    with begun_in_version_2(tmp_path / "s") as store:
        add(store, [record])
        put_into_the_first_format(store, {"r": odd})
    file = tmp_path / "s" / "m3-store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 1}))
    for _ in range(2):
        with EdgeStore(tmp_path / "s") as store:
            assert store.get(["r"])[0].metadata == odd
            assert store.count({"deep" + 40 * ".a": "x", "large": {"$gt": 5}}) == 1


def test_a_collection_of_the_first_format_opens_and_goes_on(random: np.random.Generator) -> None:
    client, added = QdrantClient(":memory:"), records(random, [f"r{i}" for i in range(300)])
    for record in added:
        record.metadata["day"], record.metadata["at"] = "2024-05-01", {"page": 0.1 + 0.2}  # type: ignore[index]
    first = ServerStore("x", client=client)
    add(first, added)
    put_into_the_first_format(first, {record.id: dict(record.metadata) for record in added})
    client.update_collection("m3", metadata=first._format.to_dict() | {"version": 1})
    for _ in range(2):
        store = ServerStore("x", client=client)
        assert_whole(store, {record.id: record for record in added})
    metadata = client.get_collection("m3").config.metadata
    assert metadata is not None
    assert metadata["version"] == 2


def put_into_the_first_format(store: QdrantStore, metadatas: dict[str, dict[str, Any]]) -> None:
    after = None
    while True:
        points, after = store._scroll(after)
        store._overwrite({p.id: as_in_the_first_format(p.payload, metadatas[p.payload["id"]]) for p in points})
        if after is None:
            return


def assert_whole(store: Store, alive: dict[str, Any]) -> None:
    assert {r.id: (r.text, r.metadata) for r in store.records()} == {r.id: (r.text, r.metadata) for r in alive.values()}
    assert store.count({"day": {"$lte": "2024-05-01T00:00Z"}}) == store.count({"at.page": 0.1 + 0.2}) == 300
    query = vectors(np.random.default_rng(1), 1)
    for filter_ in ({"size": {"$gte": 2}}, {"tags": "a"}, {"size": {"$ne": 3}}):
        expected = brute_force(alive, query, filter_)["dense"]
        assert set(store.candidates(query, {"dense": 1000}, filter_)["dense"].ids) == set(expected)
