"""What a store in a folder syncs: the engine's log after each change, all files now and then, the log first."""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations.store import edge, edge_folder, edge_log, syncing
from m3_integrations.store.edge import EdgeStore
from tests.store.oracle import add, records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the engine writes all out at every change")


@pytest.fixture
def store(tmp_path: Path, random: np.random.Generator) -> Iterator[EdgeStore]:
    """One that has been opened again and has written out its first change."""
    with EdgeStore(tmp_path / "s") as store:
        add(store, records(random, ["a", "b"]))
    with EdgeStore(tmp_path / "s") as store:
        add(store, records(random, ["c"]))
        yield store


@pytest.fixture
def synced(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is synced from now on."""
    seen: list[Path] = []
    real = syncing.sync

    def recorded(path: Path) -> None:
        seen.append(path.relative_to(store.folder / "engine"))
        real(path)

    for module in (syncing, edge_folder, edge_log):
        monkeypatch.setattr(module, "sync", recorded)
    return seen


def is_log(path: Path) -> bool:
    return path.parts[:1] == ("wal",)


def test_a_change_syncs_every_file_of_the_log_and_nothing_else(
    store: EdgeStore, synced: list[Path], random: np.random.Generator
) -> None:
    add(store, records(random, ["d"]))
    log = [path.relative_to(store.folder / "engine") for path in (store.folder / "engine" / "wal").iterdir()]
    assert set(synced) == {*log, Path("wal")}
    synced.clear()
    store.delete(["d"])
    assert set(synced) == {*log, Path("wal")}


def test_everything_is_written_out_once_in_so_many_bytes_and_the_log_first(
    store: EdgeStore, synced: list[Path], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge, "_MAX_LOGGED_BYTES", 30_000)
    n_times = 0
    for i in range(40):
        synced.clear()
        add(store, records(random, [f"r{i}"]))
        others = [n for n, path in enumerate(synced) if not is_log(path)]
        if others:
            n_times += 1
            assert set(map(is_log, synced[: others[0]])) == {True}
            assert any(path.name.startswith("open-") for path in synced[: others[0]])
    assert 1 <= n_times <= 20


def test_the_first_change_after_opening_is_written_out(
    store: EdgeStore, synced: list[Path], random: np.random.Generator
) -> None:
    add(store, records(random, ["d"]))
    assert all(map(is_log, synced))
    store.close()
    with EdgeStore(store.folder) as again:
        synced.clear()
        add(again, records(random, ["e"]))
        assert not all(map(is_log, synced))


@pytest.fixture
def killed(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store that has ended with its whole log, as after a kill."""
    with monkeypatch.context() as patch:
        patch.setattr(edge, "trim_log", lambda _: None)
        store.close()
    return store.folder


def test_the_log_gets_new_files_when_a_store_is_opened(killed: Path) -> None:
    """What the system failed to write is on no disk, though every reader sees it."""

    def open_logs() -> dict[str, int]:
        return {file.name: file.stat().st_ino for file in (killed / "engine" / "wal").glob("open-*")}

    before = open_logs()
    size = sum(file.stat().st_size for file in (killed / "engine" / "wal").iterdir())
    with EdgeStore(killed) as again:
        after = open_logs()
        assert before.keys() <= after.keys()
        assert all(after[name] != inode for name, inode in before.items())
        assert sum(file.stat().st_size for file in (killed / "engine" / "wal").iterdir()) >= size
        assert again.count() == 3
    assert sorted(path.name for path in killed.iterdir()) == ["engine", "m3-store.json", "m3-store.lock"]


def test_all_is_written_out_at_every_change_where_the_log_cannot_be_renewed(
    killed: Path, synced: list[Path], random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("m3_integrations.store.edge_folder.os.posix_fallocate", full)
        again = EdgeStore(killed)
    for id_ in ("d", "e"):
        synced.clear()
        add(again, records(random, [id_]))
        assert not all(map(is_log, synced))
    again.close()
    assert sorted(path.name for path in killed.iterdir()) == ["engine", "m3-store.json", "m3-store.lock"]


@pytest.mark.parametrize("kind", ["upsert", "flush", "optimize"])
def test_after_a_failed_sync_nothing_more_is_acknowledged_until_it_is_opened_again(
    store: EdgeStore, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is failing")

    def change() -> None:
        if kind == "upsert":
            add(store, records(random, ["d"]))
        else:
            getattr(store, kind)()

    with monkeypatch.context() as patch:
        patch.setattr("m3_integrations.store.edge_folder.os.fsync", fail)
        with pytest.raises(OSError, match=r"disk is failing.*close the store and open it again"):
            change()
    with pytest.raises(OSError, match="close the store and open it again"):
        add(store, records(random, ["e"]))
    with pytest.raises(OSError, match="close the store and open it again"):
        store.delete(["a"])
    assert store.get(["a"])
    store.close()
    with EdgeStore(store.folder) as again:
        add(again, records(random, ["f"]))
        assert {"a", "b", "c", "f"} <= {record.id for record in again.records()} <= {"a", "b", "c", "d", "f"}


def test_a_close_that_fails_lets_go_of_the_folder(
    store: EdgeStore, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = store._opened()

    class Failing:
        def flush(self) -> None:
            raise Exception("the disk is failing")  # noqa: TRY002 - as the engine does

        def close(self) -> None:
            shard.close()

    monkeypatch.setattr(store, "_shard", Failing())
    with pytest.raises(OSError, match="disk is failing"):
        store.close()
    with EdgeStore(store.folder) as again:
        assert again.count() == 3


def test_without_file_handles_nothing_is_acknowledged_and_nothing_broken(
    store: EdgeStore, random: np.random.Generator
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    handles = []
    changes = [records(random, [id_]) for id_ in ("d", "e")]
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
            while True:
                handles.append(os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            add(store, changes[0])
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    add(store, changes[1])
    assert {"a", "b", "c", "e"} <= {record.id for record in store.records()}


def test_a_log_that_is_elsewhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "first-index").touch()
    with pytest.raises(FileNotFoundError, match="log has no file that can be written"):
        edge_log.sync_log(tmp_path)
    with pytest.raises(FileNotFoundError):
        edge_log.sync_log(tmp_path / "absent")


def test_what_the_engine_deletes_meanwhile_is_passed_over_and_what_cannot_be_listed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    seen: list[Path] = []

    def vanishing(path: Path) -> None:
        seen.append(path)
        if path.parent == tmp_path / "a":
            raise FileNotFoundError(path)

    monkeypatch.setattr(syncing, "sync", vanishing)
    syncing.sync_tree(tmp_path)
    assert {path.name for path in seen} == {tmp_path.name, "a", "b", "c", "file"}
    assert len(seen) == 7
    scandir, n_listed = os.scandir, 0

    def listed(path: str) -> Any:
        nonlocal n_listed
        n_listed += 1
        if n_listed > 1:
            raise OSError(code, "cannot be listed", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    code = errno.ENOENT
    syncing.sync_tree(tmp_path)
    code, n_listed = errno.EIO, 0
    with pytest.raises(OSError, match="cannot be listed"):
        syncing.sync_tree(tmp_path)
