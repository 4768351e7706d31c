"""What a store in a folder promises beyond the common: durability, and clear refusals."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_integrations import Record, open_store
from m3_integrations.store.edge import EdgeStore
from m3_integrations.store.edge_folder import StoreFolder, _file_system
from tests.fakes import TOKEN_DIM, random_vectors
from tests.store.oracle import add, records


def write_format(folder: Path, **changes: Any) -> None:
    file = folder / "m3-store.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def filled(tmp_path: Path, random: np.random.Generator) -> Path:
    """A closed store of three records, of the model "one"."""
    with EdgeStore(tmp_path / "filled") as store:
        store.bind("one")
        add(store, records(random, ["a", "b", "c"]))
    return tmp_path / "filled"


def test_a_store_is_there_again_when_it_is_opened(filled: Path) -> None:
    with open_store(filled) as store:
        assert isinstance(store, EdgeStore)
        assert (store.count(), store.fingerprint) == (3, "one")
        assert store.modes == ("dense", "lexical", "multi_vector")
        assert [record.text for record in store.get(["b", "a"])] == ["text of b", "text of a"]
        with pytest.raises(ValueError, match="of the model one, not of two"):
            store.bind("two")
    with open_store(str(filled)) as store:
        assert store.count() == 3


def test_a_second_opener_is_told_what_to_do(filled: Path) -> None:
    with open_store(filled) as store:
        with pytest.raises(BlockingIOError, match=r"is open already in this process: use that store"):
            open_store(filled)
        code = f"from m3_integrations import open_store; open_store({str(filled)!r})"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "BlockingIOError" in other.stderr
        assert "use a Qdrant server" in other.stderr
        assert store.count() == 3
    open_store(filled).close()


def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(ValueError, match=r"not a store of this package \(it holds 'cat.jpg'\)"):
        open_store(foreign)
    assert [file.name for file in foreign.iterdir()] == ["cat.jpg"]
    with pytest.raises(NotADirectoryError, match="is a file"):
        open_store(foreign / "cat.jpg")
    other = tmp_path / "other"
    other.mkdir()
    (other / "m3-store.json").write_text('{"format": "another program"}')
    with pytest.raises(ValueError, match="not a store of this package"):
        open_store(other)
    assert (other / "m3-store.json").read_text() == '{"format": "another program"}'


def test_a_future_version_is_refused_and_left_as_it_is(filled: Path) -> None:
    write_format(filled, version=4)
    with pytest.raises(ValueError, match=r"format version 4.*upgrade m3-integrations") as refused:
        open_store(filled)
    write_format(filled, version=3)
    with open_store(filled) as store:
        assert store.count() == 3
    assert refused.traceback  # as below


def test_a_damaged_format_file_is_an_error(filled: Path) -> None:
    file = filled / "m3-store.json"
    right = file.read_text()
    file.write_text('{"format": ')
    with pytest.raises(ValueError, match=r"m3-store\.json is damaged") as refused:
        open_store(filled)
    file.write_text(right)
    with open_store(filled) as store:
        assert store.count() == 3
    assert refused.traceback  # as below


@pytest.mark.parametrize("lost_folder", ["engine", "engine/segments"])
def test_a_lost_engine_folder_is_an_error(filled: Path, lost_folder: str) -> None:
    shutil.move(filled / lost_folder, filled.parent / "away")
    with pytest.raises(ValueError, match="lacks its folder engine/segments with the records") as lost:
        open_store(filled)
    shutil.move(filled.parent / "away", filled / lost_folder)
    with open_store(filled) as store:
        assert store.count() == 3
    assert lost.traceback  # whoever keeps the error does not keep the folder locked


def test_a_creation_that_was_interrupted_is_undone(filled: Path, random: np.random.Generator) -> None:
    (filled / "engine").rename(filled / "engine.unfinished")  # as it is just before the engine gets its place
    with open_store(filled) as store:
        assert (store.modes, store.count()) == ((), 0)
        add(store, records(random, ["d"]))
        assert store.count() == 1


def test_settings_are_decided_when_a_store_is_made(tmp_path: Path) -> None:
    open_store(tmp_path / "s", multi_vector="turbo8", token_pooling=2).close()
    with pytest.raises(ValueError, match=r"made with multi_vector='turbo8', not 'float16'.*copy_store"):
        open_store(tmp_path / "s", multi_vector="float16")
    with pytest.raises(ValueError, match="made with token_pooling=2, not 3"):
        open_store(tmp_path / "s", token_pooling=3)
    open_store(tmp_path / "s", multi_vector="turbo8").close()
    for wrong in ({"multi_vector": "int8"}, {"token_pooling": 0}, {"token_pooling": 1.5}, {"token_pooling": True}):
        with pytest.raises(ValueError, match="must be"):
            open_store(tmp_path / "new", **wrong)


@pytest.mark.parametrize(
    ("where", "settings", "error", "message"),
    [
        (None, {"api_key": "k"}, TypeError, "in memory has no setting api_key"),
        ("./folder", {"api_key": "k", "on_disk": True}, TypeError, "in a folder has no setting api_key, on_disk"),
        ("ftp://host", {}, ValueError, "must begin with http"),
        (7, {}, TypeError, "None, a folder, a URL or a list of URLs, got 7"),
    ],
)
def test_settings_of_another_kind_of_store_are_refused(
    where: Any, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_store(where, **settings)


def test_the_numbers_and_dates_of_a_narrow_table_are_indexed_as_they_come(
    tmp_path: Path, random: np.random.Generator
) -> None:
    metadata = {"year": 2024, "a.b": [1.5], "name": "x", "loc": {"page": 3}, "day": date(2024, 5, 1)}
    with EdgeStore(tmp_path / "s") as store:
        add(store, [Record("a", "", metadata, random_vectors(random, 1))])
        schema = store._opened().info().payload_schema
        assert set(schema) == {"terms", "numbers.kyear", "numbers.ka_2e_b", "numbers.kloc_2e_page", "dates.kday"}
        assert {index.points for index in schema.values()} == {1}
        for row in range(20):
            add(store, [Record(f"r{row}", "", {f"own{row}": row}, random_vectors(random, 1))])
        assert len(store._opened().info().payload_schema) == 17


def test_of_a_wide_table_only_what_a_filter_compares_is_indexed(tmp_path: Path, random: np.random.Generator) -> None:
    metadata = {"year": 2024, "day": date(2024, 5, 1), "wide": {f"n{i}": i for i in range(20)}}
    year, day = "numbers.kyear", "dates.kday"
    with EdgeStore(tmp_path / "s") as store:
        add(store, [Record("a", "", metadata, random_vectors(random, 1))])
        assert set(store._opened().info().payload_schema) == {"terms"}
        for _ in range(2):
            assert store.count({"year": {"$gte": 2024}, "$not": {"day": {"$gt": "2024-05-01"}}}) == 1
            schema = store._opened().info().payload_schema
            assert {path: schema[path].points for path in schema} == {"terms": 1, year: 1, day: 1}
            assert store.count({"yaer": {"$gte": 2024}}) == 0
            assert store.count({"$not": {"yaer": {"$gte": 2024}}}) == 1
    with EdgeStore(tmp_path / "s") as store:
        assert store._indexed_paths == {"terms", year, day}


def test_indexing_is_asked_for_once_when_it_is_due(
    tmp_path: Path, random: np.random.Generator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.store.edge._DUE_AT", 120)
    with EdgeStore(tmp_path / "s") as store, caplog.at_level(logging.WARNING):
        add(store, records(random, [f"r{i}" for i in range(120)]))
        assert not caplog.messages
        add(store, records(random, [f"s{i}" for i in range(120)]))
        (message,) = caplog.messages
        assert "holds about 170 records without an index: call optimize()" in message
        store.optimize()
        add(store, records(random, ["t"]))
        assert len(caplog.messages) == 1
        add(store, records(random, [f"u{i}" for i in range(150)]))
        assert len(caplog.messages) == 2


def test_a_fork_of_the_opener_cannot_use_it(tmp_path: Path, random: np.random.Generator) -> None:
    code = f"""
import os, warnings
import numpy as np
from m3_integrations import open_store
from tests.store.oracle import add, records
warnings.simplefilter("ignore")
store = open_store({str(tmp_path / "s")!r})
add(store, records(np.random.default_rng(0), ["a"]))
if (child := os.fork()) == 0:
    try:
        store.count()
    except RuntimeError as error:
        os._exit(7 if "before the process forked" in str(error) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert store.count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_fork_of_the_opener_cannot_make_the_first_record_or_hang(tmp_path: Path) -> None:
    code = f"""
import os, signal, threading, warnings
import numpy as np
from m3_integrations import open_store
from tests.store.oracle import add, records
warnings.simplefilter("ignore")
store = open_store({str(tmp_path / "s")!r})
ours, theirs = records(np.random.default_rng(0), ["a", "b"])
is_held, is_over = threading.Event(), threading.Event()

def hold():
    with store._lock:
        is_held.set()
        is_over.wait()

threading.Thread(target=hold).start()
is_held.wait()
if (child := os.fork()) == 0:
    signal.alarm(20)
    refused = 0
    for use in (lambda: add(store, [theirs]), lambda: store.bind("other"), store.count):
        try:
            use()
        except RuntimeError as error:
            refused += "before the process forked" in str(error)
    store.close()
    os._exit(refused)
is_over.set()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
add(store, [ours])
assert (store.count(), store.fingerprint) == (1, None)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("drop", ["del store; gc.collect()", "store.close()", "pass"])
def test_a_fork_that_drops_the_store_does_not_open_it_to_others(tmp_path: Path, drop: str) -> None:
    code = f"""
import gc, os, subprocess, sys, warnings
from m3_integrations import open_store
warnings.simplefilter("ignore")
store = open_store({str(tmp_path / "s")!r})
if (child := os.fork()) == 0:
    {drop}
    sys.exit()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
second = "from m3_integrations import open_store; open_store({str(tmp_path / "s")!r})"
assert "BlockingIOError" in subprocess.run([sys.executable, "-c", second], capture_output=True, text=True).stderr
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_folder_whose_killed_owner_left_a_fork_behind_is_open_in_another_process(tmp_path: Path) -> None:
    code = f"""
import os, signal, time, warnings
import numpy as np
from m3_integrations import open_store
from tests.store.oracle import add, records
warnings.simplefilter("ignore")
store = open_store({str(tmp_path / "s")!r})
add(store, records(np.random.default_rng(0), ["a"]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        owner.wait()
        try:
            with pytest.raises(BlockingIOError, match="is open already in another process"):
                EdgeStore(tmp_path / "s")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_closed_store_leaves_its_folder_to_others(tmp_path: Path, random: np.random.Generator) -> None:
    closed = EdgeStore(tmp_path / "s")
    closed.close()
    before = (tmp_path / "s" / "m3-store.json").read_bytes()
    with pytest.raises(RuntimeError, match="was closed"):
        add(closed, records(random, ["a"]))
    with pytest.raises(RuntimeError, match="was closed"):
        closed.bind("other")
    assert not (tmp_path / "s" / "engine").exists()
    assert (tmp_path / "s" / "m3-store.json").read_bytes() == before


def test_a_creation_that_failed_is_tried_again(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: StoreFolder) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with EdgeStore(tmp_path / "s") as store:
        with monkeypatch.context() as patch:
            patch.setattr(StoreFolder, "finish", fail)
            with pytest.raises(OSError, match="No space left"):
                add(store, records(random, ["a"]))
        assert (store.modes, store.count()) == ((), 0)
        add(store, records(random, ["b"]))
        assert store.count() == 1


def test_a_full_disk_is_seen_before_the_first_record(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Usage", (), {"free": 100 << 20})()
    monkeypatch.setattr("m3_integrations.store.edge_folder.shutil.disk_usage", lambda _: free)
    with EdgeStore(tmp_path / "s") as store:
        with pytest.raises(OSError, match="MB of free disk space are needed, got 100 MB"):
            add(store, records(random, ["a"]))
        assert (store.modes, store.count()) == ((), 0)
        assert not (tmp_path / "s" / "engine").exists()


def test_long_texts_are_pooled_to_what_a_server_takes_and_flagged(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3_integrations.store.points._MAX_NUMBERS", 4 * TOKEN_DIM + 5)
    long, short = random_vectors(random, 1, tokens=10), random_vectors(random, 1, tokens=4)
    with EdgeStore(tmp_path / "s") as store:
        add(store, [Record("long", "", {}, long), Record("short", "", {}, short)])
        one, two = store.get(["long", "short"], with_vectors=True)
        assert (one.is_pooled, two.is_pooled) == (True, False)
        assert one.vectors is not None
        tokens = long.multi_vector[0]
        means = [tokens[a:b].mean(axis=0) for a, b in ((0, 2), (2, 5), (5, 7), (7, 10))]
        expected = np.stack([mean / np.linalg.norm(mean) for mean in means])
        np.testing.assert_allclose(one.vectors.multi_vector[0], expected, atol=5e-4)


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "s") as store:
        add(store, records(random, ["a"]))
        free = type("Usage", (), {"free": 100 << 20})()
        with monkeypatch.context() as patch:
            patch.setattr("m3_integrations.store.edge_folder.shutil.disk_usage", lambda _: free)
            with pytest.raises(OSError, match="MB of free disk space are needed, got 100 MB"):
                add(store, records(random, ["b"]))
            with pytest.raises(OSError, match="MB of free disk space are needed, got 100 MB"):
                store.optimize()
        assert store.count() == 1
        add(store, records(random, ["b"]))
    with EdgeStore(tmp_path / "s") as store:
        assert store.count() == 2


@pytest.mark.parametrize(
    ("kind", "was_closed", "limits"),
    [("ext4", True, (1, 3)), ("ext4", False, (100, 170)), ("tmpfs", True, (120, 140))],
)
def test_a_folder_on_a_full_disk_is_refused_before_the_engine_maps_its_files(
    kind: str, was_closed: bool, limits: tuple[int, int], disk_path: Path, random: np.random.Generator
) -> None:
    too_few, enough = limits
    with EdgeStore(disk_path / "s") as store:
        add(store, records(random, ["a"]))
        shutil.copytree(store.folder, disk_path / "crashed", ignore=shutil.ignore_patterns("*.lock"))
    folder = disk_path / ("s" if was_closed else "crashed")
    usage = "m3_integrations.store.edge_folder.shutil.disk_usage"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(usage, lambda _: type("Usage", (), {"free": too_few << 20})())
        patch.setattr("m3_integrations.store.edge_folder._file_system", lambda _: kind)
        with pytest.raises(OSError, match=f"MB of free disk space are needed, got {too_few} MB: nothing was changed"):
            EdgeStore(folder)
        patch.setattr(usage, lambda _: type("Usage", (), {"free": enough << 20})())
        with EdgeStore(folder) as store:
            assert store.count() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its mounts")
def test_the_file_system_of_a_path_is_that_of_its_nearest_mount() -> None:
    assert _file_system(Path("/proc/self")) == "proc"
    assert _file_system(Path("/dev/shm/absent")) == "tmpfs"
    assert _file_system(Path("/absent")) == _file_system(Path("/")) != ""


@pytest.mark.parametrize("fault", ["full", "broken"])
def test_a_search_needs_no_index_where_nothing_can_be_written(
    fault: str, tmp_path: Path, random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EdgeStore(tmp_path / "store") as store:
        store.upsert(["a"], ["text"], [{f"k{i}": i for i in range(20)}], random_vectors(random, 1))
        if fault == "full":
            free = type("Usage", (), {"free": 1 << 10})()
            monkeypatch.setattr("m3_integrations.store.edge_folder.shutil.disk_usage", lambda _: free)
        else:
            store._broken_by = OSError("the disk is gone")
        before = set(store._opened().info().payload_schema)
        assert store.count({"k7": {"$gte": 7}}) == 1
        assert (
            set(store._opened().info().payload_schema) == before
        )  # the engine maps what it writes, and would be killed


def test_an_engine_that_cannot_write_says_so_and_loses_nothing(tmp_path: Path) -> None:
    code = f"""
import resource, sys
import numpy as np
from m3_integrations import open_store, Record
from tests.fakes import random_vectors
from tests.store.oracle import add
random = np.random.default_rng(0)
store = open_store({str(tmp_path / "s")!r})
add(store, [Record("a", "kept", {{}}, random_vectors(random, 1))])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
acknowledged = 0
try:
    for i in range(1000):
        add(store, [Record(f"r{{i}}", random.bytes(100_000).hex(), {{}}, random_vectors(random, 1))])
        acknowledged += 1
except OSError as error:
    print(acknowledged, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    acknowledged, message = done.stdout.split(" ", 1)
    assert "close the store and open it again" in message
    assert int(acknowledged) > 3
    with open_store(tmp_path / "s") as store:
        add(store, [Record("z", "later", {}, random_vectors(np.random.default_rng(1), 1))])
        ids = ["a", *(f"r{i}" for i in range(int(acknowledged))), "z"]
        assert [record.id for record in store.get(ids)] == ids


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize(("free_mb", "is_opened"), [(100, False), (125, False), (133, True)])
def test_a_closed_folder_in_full_memory_is_refused_or_opens(free_mb: int, is_opened: bool, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount")
    code = f"""
import shutil, sys
import numpy as np
from m3_integrations import open_store, Record
from tests.fakes import random_vectors
from tests.store.oracle import add
with open_store({str(disk / "s")!r}) as store:
    add(store, [Record("a", "text", {{}}, random_vectors(np.random.default_rng(0), 1))])
with open({str(disk / "filling")!r}, "wb") as file:
    for _ in range((shutil.disk_usage({str(disk)!r}).free >> 20) - {free_mb}):
        file.write(bytes(1 << 20))
try:
    print(open_store({str(disk / "s")!r}).count())
except OSError as error:
    print(error)
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr  # not killed
        assert (done.stdout == "1\n") is is_opened
        assert ("nothing was changed" in done.stdout) is not is_opened
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    code = f"""
import numpy as np
from m3_integrations import open_store, Record
from tests.fakes import random_vectors
from tests.store.oracle import add
random = np.random.default_rng(0)
store = open_store({str(disk / "s")!r})
acknowledged = 0
try:
    for i in range(1000):  # what the engine's compression cannot shrink
        add(store, [Record(f"r{{i}}", random.bytes(500_000).hex() + str(i), {{}}, random_vectors(random, 1))])
        acknowledged += 1
except OSError as error:
    print(acknowledged, error)
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        acknowledged, message = done.stdout.split(" ", 1)
        assert "MB of free disk space are needed" in message
        assert int(acknowledged) > 10
        with open_store(disk / "s") as store:
            ids = [f"r{i}" for i in range(int(acknowledged))]
            assert [record.text[1_000_000:] for record in store.get(ids)] == [id_[1:] for id_ in ids]
    finally:
        subprocess.run(["umount", disk], check=True)
