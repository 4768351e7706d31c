"""What a store in a folder leaves of the engine's log when it closes, and what a kill leaves meanwhile."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from m3_integrations import M3Vectors, Record, open_store
from m3_integrations.store.edge_log import last_change, restore_log, trim_log
from tests.store.oracle import add, records


def size_bytes(folder: Path) -> int:
    """What a folder takes on the disk, holes apart."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*"))


def versions(folder: Path) -> dict[str, str]:
    with open_store(folder) as store:
        return {record.id: record.text for record in store.records()}


def put(folder: Path, ids: list[str], version: str) -> None:
    """Open a store, replace records in it, and close it."""
    with open_store(folder) as store:
        made = records(np.random.default_rng(0), ids)
        add(store, [Record(each.id, version, {}, each.vectors) for each in made])


@pytest.fixture
def untrimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A closed store whose log has all its changes, and the last of them is small."""
    folder = tmp_path / "untrimmed"
    with monkeypatch.context() as patch:
        patch.setattr("m3_integrations.store.edge.trim_log", lambda _: None)
        put(folder, [f"r{i}" for i in range(120)], "first")
        put(folder, ["r0"], "second")
    return folder


def test_a_closed_store_keeps_no_log_of_what_is_written_out(untrimmed: Path) -> None:
    wal = untrimmed / "engine" / "wal"
    n_changes = sum(1 for _ in open_entries(wal))
    assert size_bytes(wal) > 60_000
    put(untrimmed, ["r1"], "third")
    assert size_bytes(wal) <= 3 * 4096
    assert [path.name for path in wal.iterdir() if path.name != "first-index"] == [f"closed-{n_changes + 1}"]
    assert versions(untrimmed) == {f"r{i}": "first" for i in range(120)} | {"r0": "second", "r1": "third"}


def open_entries(wal: Path) -> list[int]:
    """The lengths of the changes in the open files, read anew here."""
    lengths: list[int] = []
    for file in wal.glob("open-*"):
        data, place = file.read_bytes(), 8
        while length := int.from_bytes(data[place : place + 8], "little"):
            lengths.append(length)
            place += (8 + length + 4 + 7) // 8 * 8
    return lengths


def test_a_change_after_every_closing_is_seen_and_stays(tmp_path: Path) -> None:
    """The engine skips a change whose number a record has had: a log that began anew would lose these."""
    for version in map(str, range(6)):
        put(tmp_path / "s", ["a", f"only {version}"], version)
        assert versions(tmp_path / "s")["a"] == version
    assert len(versions(tmp_path / "s")) == 7


def test_the_last_change_stays_if_a_record_got_its_number(tmp_path: Path) -> None:
    """A record so small that its change stays in the log: without it the next change would get the same number."""
    folder, vectors = tmp_path / "s", M3Vectors(dense=np.array([[0.6, 0.8]], np.float32))
    for version in map(str, range(4)):
        with open_store(folder) as store:
            store.upsert(["a"], [version], [{}], vectors)
        last = last_change(folder / "engine" / "wal")
        assert last is not None
        assert f"dtexta{version}".encode() in last.entry  # in CBOR, the texts "text" and the version
        assert versions(folder) == {"a": version}


def test_a_store_that_was_only_read_is_trimmed_too(untrimmed: Path) -> None:
    versions(untrimmed)
    assert size_bytes(untrimmed / "engine" / "wal") <= 3 * 4096
    versions(untrimmed)
    assert size_bytes(untrimmed / "engine" / "wal") <= 3 * 4096


def test_a_log_of_another_format_or_with_what_is_not_written_out_stays(untrimmed: Path) -> None:
    versions_before = {f"r{i}": "first" for i in range(120)} | {"r0": "second"}
    wal = untrimmed / "engine" / "wal"
    last = last_change(wal)
    assert last is not None
    assert last.is_small
    acknowledged = (wal / "first-index").read_text()
    for damaged in (f'{{"ack_index":{last.number - 1}}}', f'{{"ack_index":{last.number + 1}}}', "{}", "none"):
        (wal / "first-index").write_text(damaged)
        assert last_change(wal) is None
    (wal / "first-index").write_text(acknowledged)
    file = next(file for file in wal.glob("open-*") if file.read_bytes()[8:].strip(b"\0"))
    magic = file.read_bytes()[:4]
    with file.open("r+b") as opened:
        opened.write(b"WAL\1")
    before = {path.name: path.read_bytes() for path in wal.iterdir()}
    trim_log(wal)
    assert {path.name: path.read_bytes() for path in wal.iterdir()} == before
    with file.open("r+b") as opened:
        opened.write(magic)
    assert versions(untrimmed) == versions_before


def copy_with_holes(source: str, target: str) -> None:
    """Copy what a file holds between its holes: the engine reserves some 250 MB a store, and fills little of it."""
    with Path(source).open("rb") as old, Path(target).open("wb") as new:
        place, size = 0, Path(source).stat().st_size
        with suppress(OSError):  # after the last data there is nothing to seek
            while place < size:
                place = os.lseek(old.fileno(), place, os.SEEK_DATA)
                end = os.lseek(old.fileno(), place, os.SEEK_HOLE)
                old.seek(place)
                new.seek(place)
                new.write(old.read(end - place).rstrip(b"\0"))
                place = end
        new.truncate(size)


_KILLED_AT_EVERY_LINE = """
import os, shutil, sys
from pathlib import Path
from m3_integrations.store import edge_log as log

def kill_at(line_number):
    seen = 0
    def trace(frame, event, _):
        nonlocal seen
        if frame.f_code not in (log.trim_log.__code__, log.restore_log.__code__):
            return None
        if event == "line":
            seen += 1
            if seen == line_number:
                os._exit(9)
        return trace
    return trace

untrimmed, copies = map(Path, sys.argv[1:])
for n in range(1, 400):
    shutil.copytree(untrimmed, copies / str(n), copy_function=os.link)  # nothing is written into these files
    if (child := os.fork()) == 0:
        sys.settrace(kill_at(n))
        log.trim_log(copies / str(n) / "engine" / "wal")
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in {0, 9}, status
    if status == 0:
        break
    wal = copies / str(n) / "engine" / "wal"
    state = sorted(path.name for path in wal.parent.glob("wal*"))
    if n > 1 and state == last and (wal.exists() and len(list(wal.iterdir()))) == n_files:
        shutil.rmtree(copies / str(n))  # nothing changed on the disk since the line before
    last, n_files = state, wal.exists() and len(list(wal.iterdir()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork to kill")
def test_a_kill_at_any_line_of_the_trimming_loses_nothing(untrimmed: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    subprocess.run([sys.executable, "-c", _KILLED_AT_EVERY_LINE, str(untrimmed), str(copies)], check=True)
    states = {tuple(sorted(path.name for path in copy.glob("engine/wal*"))) for copy in copies.iterdir()}
    assert states == {("wal",), ("wal", "wal.new"), ("wal.new", "wal.old"), ("wal", "wal.old")}
    for linked in sorted(copies.iterdir()):
        copy = Path(shutil.copytree(linked, tmp_path / "opened" / linked.name, copy_function=copy_with_holes))
        put(copy, ["r1", "new"], "after")
        expected = {f"r{i}": "first" for i in range(120)} | {"r0": "second", "r1": "after", "new": "after"}
        assert versions(copy) == expected, copy
        assert [path.name for path in (copy / "engine").glob("wal*")] == ["wal"]


@pytest.mark.parametrize("failing", ["mkdir", "write_bytes", "rename"])
def test_a_full_disk_leaves_the_log_as_it_was(untrimmed: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left")

    wal = untrimmed / "engine" / "wal"
    before = {path.name: path.read_bytes() for path in wal.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        trim_log(wal)
    assert {path.name: path.read_bytes() for path in wal.iterdir()} == before
    assert [path.name for path in wal.parent.glob("wal*")] == ["wal"]


def test_an_interrupted_exchange_is_undone_or_finished(tmp_path: Path) -> None:
    wal, old, new = tmp_path / "wal", tmp_path / "wal.old", tmp_path / "wal.new"
    for folder in (old, new):
        folder.mkdir()
    (old / "whole").touch()
    restore_log(wal)
    assert [path.name for path in tmp_path.rglob("*")] == ["wal", "whole"]
    old.mkdir()
    (old / "former").touch()
    restore_log(wal)
    assert [path.name for path in tmp_path.rglob("*")] == ["wal", "whole"]
