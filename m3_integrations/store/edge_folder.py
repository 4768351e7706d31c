"""`StoreFolder`: the folder of an embedded store, with its lock, its format file and its durable writes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import uuid
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from m3_integrations.store.edge_ahead import ReadAhead
from m3_integrations.store.edge_log import WRITTEN_LOG, last_change, restore_log
from m3_integrations.store.edge_size import allocated_bytes
from m3_integrations.store.points import StoreFormat
from m3_integrations.store.switching import finish_switch, is_half_switched
from m3_integrations.store.syncing import sync

if sys.platform != "win32":
    import fcntl

_FORMAT_FILE: Final = "m3-store.json"
_LOCK_FILE: Final = "m3-store.lock"
_ENGINE: Final = "engine"
_UNFINISHED: Final = "engine.unfinished"
_OPTIMIZED: Final = "engine.optimized"
_REPLACED: Final = "engine.replaced"
_NEW_LOG: Final = "m3-store.log.new"

_RESERVE_BYTES: Final = 160 << 20
"""Disk space that is never used: the engine maps its files, and a page without room kills the process. On a tmpfs,
where reading takes room too, opening after a crash needs more than 128 MB."""

_OPENING_BYTES: Final = 2 << 20
"""Disk space that opening needs if the store was closed: 1 MB was enough, without any the process was killed."""

_MEMORY: Final = ("tmpfs", "ramfs")
"""File systems on which the engine's reserved space takes room as soon as it is read."""

_HERE: Final[weakref.WeakValueDictionary[tuple[int, Path], StoreFolder]] = weakref.WeakValueDictionary()
"""The folders that are open in this process, by process id and path."""


class StoreFolder:
    """A store's folder, which only one process can have open.

    It holds `m3-store.json` with the format, a lock file, and the engine's own folder.

    Args:
        path: The folder; it is made if it does not exist. A folder that has files but is not a store is refused. `~` is
            the user's home.

    Attributes:
        path: The folder, absolute.
        is_read_only: Whether the folder cannot be written to. Then the engine's files are copied to a temporary folder.
        engine: The folder of the engine's files. It exists once the store has had records.
        log: The folder of the engine's write-ahead log, which the engine replays after a crash.
        unfinished: The folder in which the engine's files are created, before `finish` renames it to `engine`.

    Raises:
        NotADirectoryError: If the path is a file.
        ValueError: If the folder has files but is not a store, or a later version of this package made it.
        BlockingIOError: If the folder is already open, in this process or another.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().resolve()
        except RuntimeError as error:
            raise ValueError(f"the home folder in {os.fspath(path)!r} is unknown: write the whole path") from error
        if is_half_switched(self.path):
            finish_switch(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"a store must be a folder, but {self.path} is a file: choose another path")
        self.is_read_only = self.path.exists() and not os.access(self.path, os.W_OK)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._lock: FileLock | None = None
        self._ahead: ReadAhead | None = None
        if self.is_read_only:
            self._copy = tempfile.TemporaryDirectory(prefix="m3-store-", ignore_cleanup_errors=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
        work = Path(self._copy.name) if self._copy else self.path
        self.engine, self.unfinished = work / _ENGINE, work / _UNFINISHED
        self._replaced = work / _REPLACED
        self.log = self.engine / "wal"
        try:
            self._refuse_foreign()
            if self.is_read_only:
                self._copy_engine()
            else:
                self._take()
                self._tidy()
        except BaseException:
            self.unlock()
            raise

    def _take(self) -> None:
        """Lock the folder against other processes."""
        lock = FileLock(self.path / _LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise self.taken() from error
        self._lock = lock
        _HERE[os.getpid(), self.path] = self

    def _copy_engine(self) -> None:
        """Copy the engine's files, if no other process has the folder open."""
        with suppress(FileNotFoundError), (self.path / _LOCK_FILE).open("rb") as file:
            if sys.platform != "win32":
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise self.taken() from error
            self._copy_files()
            return
        self._copy_files()

    def _copy_files(self) -> None:
        engine = self.path / _ENGINE
        if not engine.exists():  # perhaps `take` was interrupted
            engine = self.path / _REPLACED
        if engine.exists():
            shutil.copytree(engine, self.engine)

    def taken(self) -> BlockingIOError:
        """Return the error for a folder that is open already."""
        if _HERE.get((os.getpid(), self.path), self) is not self:
            return BlockingIOError(
                f"{self.path} is open already in this process: use that store object, or close() it first"
            )
        return BlockingIOError(
            f"{self.path} is open already in another process, and only one process can open it: close it there, or "
            "share it with m3 serve MODEL --store FOLDER, or use a Qdrant server: open_store('http://...')"
        )

    def read(self) -> StoreFormat | None:
        """Return the store's format; None if the store is new.

        Raises:
            ValueError: If the format file is damaged, is not this package's, or was written by a later version.
        """
        file = self.path / _FORMAT_FILE
        if not file.exists():
            return None
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        return StoreFormat.from_dict(str(self.path), found)

    def write(self, format_: StoreFormat) -> None:
        """Write the format file atomically: after a crash it is either the old or the new one."""
        new = self.path / (_FORMAT_FILE + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(format_.to_dict(), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / _FORMAT_FILE)
        sync(self.path)

    def finish(self) -> None:
        """Rename `unfinished` to `engine`, atomically."""
        self.unfinished.rename(self.engine)
        sync(self.path)

    def read_ahead(self) -> None:
        """Begin to read the engine's files into the system's cache, until `take` or `unlock`."""
        self._stop_ahead()
        self._ahead = ReadAhead(self.engine)

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def new_copy(self) -> Path:
        """Return a new name for a copy of `engine`. The next opening deletes what is left of it."""
        return self.engine.with_name(f"{_OPTIMIZED}.{uuid.uuid4().hex}")

    def take(self, copy: Path) -> None:
        """Rename a copy to `engine`. Killed at any moment, the next opening finds one of the two."""
        self._stop_ahead()
        shutil.rmtree(self._replaced, ignore_errors=True)
        try:
            self.engine.rename(self._replaced)
            copy.rename(self.engine)
        except BaseException:
            if not self.engine.exists():
                self._replaced.rename(self.engine)
            raise
        sync(self.path)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def discard_unfinished(self) -> None:
        """Delete the files of a failed creation, which never held a record."""
        if self.unfinished.exists():
            shutil.rmtree(self.unfinished)

    def renew_log(self) -> bool:
        """Replace the log files that are still written by durable copies; return whether that succeeded.

        After a failed fsync the page cache shows data that the disk lost. After a power cut the log would have a gap
        there, and the engine would not find the entries behind it.
        """
        new = self.engine.parent / _NEW_LOG
        try:
            for log in self.log.glob(WRITTEN_LOG + "*"):
                written = log.read_bytes()
                if not written:
                    continue
                with new.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, len(written))  # as the engine does, which maps the file
                    file.write(written.rstrip(b"\0"))
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(log)
            sync(self.log)
        except OSError:
            new.unlink(missing_ok=True)
            return False
        return True

    def check_writable(self) -> None:
        """Raise PermissionError if the folder cannot be written to."""
        if self.is_read_only:
            raise PermissionError(
                errno.EACCES, "the store was opened for reading because its folder is not writable", str(self.path)
            )

    def check_disk(self, size_bytes: int) -> None:
        """Raise OSError unless twice so many bytes are free, and some that are never used."""
        self._check_free(2 * size_bytes + _RESERVE_BYTES)

    def make_ready(self) -> None:
        """Make the log ready for the engine to open it. After a crash the engine applies its changes again.

        Raises:
            OSError: If the disk is too full for that.
        """
        restore_log(self.log)
        needed = _OPENING_BYTES
        if _file_system(self.engine) in _MEMORY:
            files = (self.engine / "segments").rglob("*.mmap")  # those that are read whole when they are opened
            needed += sum(max(path.stat().st_size - allocated_bytes(path), 0) for path in files)
        self._check_free(max(needed, _RESERVE_BYTES if last_change(self.log) is None else 0), "nothing was changed")

    def _check_free(self, needed: int, said: str = "nothing was written") -> None:
        free = shutil.disk_usage(self.engine.parent).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"{needed >> 20} MB of free disk space are needed, got {free >> 20} MB: {said}",
                str(self.path),
            )

    def unlock(self) -> None:
        """Release the lock, so that the folder can be opened again, and delete the temporary copy."""
        self._stop_ahead()
        if self._lock is not None:
            _HERE.pop((os.getpid(), self.path), None)
            self._lock.release()
        if self._copy is not None:
            self._copy.cleanup()

    def _refuse_foreign(self) -> None:
        """Raise ValueError if the folder has files but is not a store. Nothing was written into it yet."""
        ours = {_FORMAT_FILE, _FORMAT_FILE + ".new", _LOCK_FILE, _NEW_LOG}
        names = {entry.name for entry in self.path.iterdir()}
        if _FORMAT_FILE not in names and (foreign := sorted(names - ours)):
            raise ValueError(
                f"{self.path} is not a store of this package (it holds {foreign[0]!r}) and was not changed: choose an "
                "empty or a new folder"
            )

    def _tidy(self) -> None:
        """Undo an interrupted creation, which never held a record, and an interrupted `take`."""
        if self._replaced.exists() and not self.engine.exists():
            self._replaced.rename(self.engine)
            sync(self.path)
        for left in (self._replaced, *self.path.glob(f"{_OPTIMIZED}.*")):
            shutil.rmtree(left, ignore_errors=True)
        format_ = self.read()
        if not self.unfinished.exists():
            return
        if format_ is not None and not self.engine.exists():
            self.write(replace(format_, modes=(), dense_dim=0, token_dim=0))
        self.discard_unfinished()


def _file_system(path: Path) -> str:
    """Return the kind of file system that a path is on, such as "ext4"; "" where Linux's list of mounts is absent."""
    kind, longest = "", 0
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, written, here, *_ = line.split(" ")
            place = written.replace("\\040", " ")
            if len(place) >= longest and path.is_relative_to(place):
                kind, longest = here, len(place)
    return kind
