"""Reading a folder's files ahead: what is in the system's cache of pages afterwards, and that the thread ends."""

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.edge_ahead import ReadAhead
from tests.fakes import random_vectors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages are cached")

MB = 1 << 20


def forget(file: Path) -> None:
    """Drop a file's pages from the cache."""
    handle = os.open(file, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def cached_share(file: Path) -> float:
    """Return the share of a file's pages that are in the cache."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), found
        )
        del start  # else the map cannot be closed
    assert not failed
    return sum(page & 1 for page in found) / pages


def make_file(path: Path, size_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size_bytes))
    forget(path)
    if cached_share(path) > 0.5:
        pytest.skip("this disk's pages cannot be dropped from the cache")
    return path


def test_files_are_cached_afterwards_and_token_vectors_come_last(
    disk_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = disk_path / "segments" / "a"
    tokens = make_file(segment / "vector_storage-multi_vector" / "vectors", 12 * MB)
    dense = make_file(segment / "vector_storage-zzz" / "vectors", 12 * MB)
    log = make_file(disk_path / "wal" / "open-1", MB)
    monkeypatch.setattr("m3_integrations.store.edge_ahead._MOST_BYTES", 12 * MB)
    ahead = ReadAhead(disk_path)
    ahead.wait()
    assert ahead.n_bytes == 12 * MB
    assert cached_share(dense) == 1
    assert cached_share(tokens) < 0.5  # the system itself reads what follows the first page
    assert cached_share(log) < 0.5
    monkeypatch.setattr("m3_integrations.store.edge_ahead._MOST_BYTES", 1 << 30)
    ReadAhead(disk_path).wait()
    assert cached_share(tokens) == 1


def test_small_stores_and_reserved_space_are_not_read(disk_path: Path) -> None:
    segment = disk_path / "segments" / "a"
    make_file(segment / "small", MB)
    assert ReadAhead(disk_path).n_bytes == 0
    make_file(segment / "large", 16 * MB)
    with (segment / "reserved").open("wb") as file:
        file.truncate(1 << 40)
    ahead = ReadAhead(disk_path)
    ahead.wait()
    assert ahead.n_bytes == 17 * MB
    assert ReadAhead(disk_path / "absent").n_bytes == 0


def test_a_store_is_read_ahead_when_it_opens_and_the_thread_ends_with_it(
    disk_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.store.edge_ahead._LEAST_BYTES", 0)
    with EdgeStore(disk_path / "s") as store:
        store.upsert(["a"], ["text"], [{}], random_vectors(np.random.default_rng(0), 1))
    with EdgeStore(disk_path / "s") as store:
        ahead = store._place._ahead
        assert ahead is not None
        ahead.wait()
        assert ahead.n_bytes > 0
        store.optimize()
        assert store.count() == 1
    assert store._place._ahead is None


def test_a_stopped_thread_reads_no_further_and_has_no_file_open(
    disk_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_file(disk_path / "segments" / "a" / "large", 32 * MB)
    begin = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr("m3_integrations.store.edge_ahead._most_bytes", lambda: begin.wait(60) and 1 << 30)
        ahead = ReadAhead(disk_path)
        stopping = threading.Thread(target=ahead.stop)
        stopping.start()
        while not ahead._is_stopped.is_set():
            stopping.join(0.001)
        begin.set()
        stopping.join()
    assert ahead.n_bytes == 0
    ahead = ReadAhead(disk_path)
    ahead.stop()
    assert file not in [path.resolve() for path in Path("/proc/self/fd").iterdir()]
