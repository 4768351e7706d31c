"""The engine's log of changes: when a store closes, changes that are in the engine's segments are removed from it.

`sync_log` is what makes a write durable.

The engine keeps up to 64 MB of such changes in the log, and reserves as much again. The last change must stay, with its
number: the engine numbers changes by the log, and skips a change whose number a record has had already. With an empty
log the numbers would begin at 0 again, and new changes would be lost without an error.

A log is a folder. Its files `closed-N` begin with change number N, its files `open-N` continue them, and `first-index`
has the number of the last change that is written out. A file begins with "wal", a zero byte, and 4 bytes that seed the
checksum of its first change. Each change has its length in 8 bytes, its bytes, and zeros up to a multiple of 8 whose
last four bytes are a checksum, seeded with the checksum before. So a change can be copied together with the checksum
before it.
"""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from m3_integrations.store.syncing import sync

WRITTEN_LOG: Final = "open-"
"""The beginning of the names of log files that the engine still writes; it renames full ones."""

_FULL_LOG: Final = "closed-"
_ACKNOWLEDGED: Final = "first-index"

_MAGIC: Final = b"wal\0"
_HEADER_BYTES: Final = 8
_LENGTH_BYTES: Final = 8
_CHECKSUM_BYTES: Final = 4

_SMALL_CHANGE_BYTES: Final = 1024

_NOBODY: Final = uuid.UUID(int=0)  # no record has it: `point_id` makes none of version 0


@dataclass(frozen=True, slots=True)
class LastChange:
    """The last change in a log.

    Attributes:
        number: Its number, from 0, among all changes that the store ever had.
        checksum_before: The checksum of the change before it, 4 bytes.
        entry: The bytes of the change in the file, with its length and checksum.
    """

    number: int
    checksum_before: bytes
    entry: bytes

    @property
    def is_small(self) -> bool:
        """Whether it is small enough to stay in the log of a closed store."""
        return len(self.entry) <= _SMALL_CHANGE_BYTES


def last_change(log: Path) -> LastChange | None:
    """Return the last change of a log whose changes are all written out, else None.

    None is also returned for the log of an open engine, and for a log in another format than the one described above.
    """
    try:
        acknowledged = json.loads((log / _ACKNOWLEDGED).read_text(encoding="utf-8"))["ack_index"]
        full = sorted((int(file.name.removeprefix(_FULL_LOG)), file) for file in log.glob(_FULL_LOG + "*"))
        being_written = sorted((int(file.name.removeprefix(WRITTEN_LOG)), file) for file in log.glob(WRITTEN_LOG + "*"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    number, last = (full[0][0] if full else 0), None
    for start, file in [*full, *((None, file) for _, file in being_written)]:
        if start is not None and start != number:
            return None
        n_changes, found = _read(file)
        if found is None:
            return None
        number += n_changes
        last = found if n_changes else last
    return LastChange(number - 1, *last) if last is not None and acknowledged == number - 1 else None


def end_with_small_change(shard: edge.EdgeShard, log: Path) -> None:
    """If the last change of an engine that is written out is large, add a small one that can stay in the log."""
    last = last_change(log)
    if last is not None and not last.is_small:
        shard.update(edge.UpdateOperation.delete_points([_NOBODY]))
        shard.flush()


def _read(file: Path) -> tuple[int, tuple[bytes, bytes] | None]:
    """Return the number of changes in a file, and the last one with the checksum before it (None if not a log)."""
    size, n_changes, start = file.stat().st_size, 0, _HEADER_BYTES
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            return 0, None
        before, entry_bytes = _HEADER_BYTES, 0
        while start + _LENGTH_BYTES <= size:
            opened.seek(start)
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if not length:
                break
            before, entry_bytes = start, _padded(_LENGTH_BYTES + length + _CHECKSUM_BYTES)
            start, n_changes = start + entry_bytes, n_changes + 1
        if start > size:
            return 0, None
        opened.seek(before - _CHECKSUM_BYTES)
        checksum = opened.read(_CHECKSUM_BYTES)
        return n_changes, (checksum, opened.read(entry_bytes))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // 8) * 8


def trim_log(log: Path) -> None:
    """Remove all changes but the last from the log of an engine that was written out and closed.

    After a kill or a power cut at any moment, `restore_log` leaves the whole log or the trimmed one; it must be called
    before the next opening. If the disk is full, or the log's format is unknown, the log is not changed.
    """
    last = last_change(log)
    if last is None or not last.is_small:
        return
    new, old = _beside(log)
    try:
        new.mkdir()
        shutil.copy(log / _ACKNOWLEDGED, new)
        (new / f"{_FULL_LOG}{last.number}").write_bytes(_MAGIC + last.checksum_before + last.entry)
        for file in (*new.iterdir(), new, log.parent):
            sync(file)
        log.rename(old)
        new.rename(log)
        sync(log.parent)
    except OSError:  # the old log is still there, or `restore_log` restores it
        return
    finally:
        restore_log(log)


def restore_log(log: Path) -> None:
    """Finish or undo an interrupted `trim_log`."""
    new, old = _beside(log)
    if old.exists() and not log.exists():
        old.rename(log)
        sync(log.parent)
    for left in (new, old):
        with suppress(FileNotFoundError):
            shutil.rmtree(left)


def _beside(log: Path) -> tuple[Path, Path]:
    return log.with_name(log.name + ".new"), log.with_name(log.name + ".old")


def sync_log(folder: Path) -> None:
    """Make an engine's log durable. Other threads can run meanwhile.

    On Linux this includes data that was written through memory maps.

    Raises:
        OSError: If the disk fails, or the folder has no log.
    """
    names = [file.name for file in folder.iterdir()]
    if not any(name.startswith(WRITTEN_LOG) for name in names):
        raise FileNotFoundError(errno.ENOENT, "the engine's log has no file that can be written", str(folder))
    for name in names:
        try:
            sync(folder / name)
        except FileNotFoundError:
            if name.startswith(WRITTEN_LOG):
                raise
    sync(folder)
