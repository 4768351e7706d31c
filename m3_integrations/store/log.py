"""The engine's log of changes: when a store closes, what is written out elsewhere is dropped from it.

The engine keeps up to 64 MB of changes that its segments have long since, and reserves as much for those to come. It
counts changes by the log, and takes one with a number that a record has had for done: a log that begins anew loses
changes without a word. So the last change stays, under its number.

A log is a folder of files `closed-N`, whose first change has the number N, of files `open-N`, which go on from there,
and of `first-index`, the last change that is written out. A file is "wal", a zero, 4 bytes that its first checksum
goes on from, and its changes: their length in 8 bytes, their bytes, zeros up to a multiple of 8, the last four of which
are a checksum that goes on from the one before. So a change may be moved as it is behind the checksum before it.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from m3_integrations.store.folder import sync

_WRITTEN_LOG: Final = "open-"
_FULL_LOG: Final = "closed-"
_ACKNOWLEDGED: Final = "first-index"

_MAGIC: Final = b"wal\0"
_HEADER_BYTES: Final = 8
_LENGTH_BYTES: Final = 8
_CHECKSUM_BYTES: Final = 4

_SMALL_CHANGE_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class LastChange:
    """The last change in a log.

    Attributes:
        number: Counted from 0, over all that the store ever had.
        checksum_before: 4 bytes, of the change before it.
        entry: The change as it stands in the file, with its length and checksum.
    """

    number: int
    checksum_before: bytes
    entry: bytes

    @property
    def is_small(self) -> bool:
        """Whether it may stay in the log of a store that is closed."""
        return len(self.entry) <= _SMALL_CHANGE_BYTES


def last_change(log: Path) -> LastChange | None:
    """Return the last change of a log in which everything is written out; None if that cannot be said of it.

    It may be the log of an engine that is open, or one of a format that is not the one described above.
    """
    try:
        acknowledged = json.loads((log / _ACKNOWLEDGED).read_text(encoding="utf-8"))["ack_index"]
        full = sorted((int(file.name.removeprefix(_FULL_LOG)), file) for file in log.glob(_FULL_LOG + "*"))
        being_written = sorted(
            (int(file.name.removeprefix(_WRITTEN_LOG)), file) for file in log.glob(_WRITTEN_LOG + "*")
        )
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


def _read(file: Path) -> tuple[int, tuple[bytes, bytes] | None]:
    """Return how many changes a file has, and its last with the checksum before it; None if it is no such file."""
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
    """Leave the last change alone in the log of an engine that was written out and closed.

    A kill or a power cut at any moment leaves the whole log or the trimmed one, if `restore_log` is called before the
    next opening. Where a disk is full, or the log is none that is known, it stays as it is.
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
    except OSError:  # it is the log of before, or `restore_log` makes it that
        return
    finally:
        restore_log(log)


def restore_log(log: Path) -> None:
    """Finish or undo what an interrupted `trim_log` has left."""
    new, old = _beside(log)
    if old.exists() and not log.exists():
        old.rename(log)
        sync(log.parent)
    for left in (new, old):
        with suppress(FileNotFoundError):
            shutil.rmtree(left)


def _beside(log: Path) -> tuple[Path, Path]:
    return log.with_name(log.name + ".new"), log.with_name(log.name + ".old")
