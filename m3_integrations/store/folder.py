"""The folder of an embedded store: whose it is, who has it open, what it says of itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from m3_integrations.store.points import StoreFormat

if sys.platform != "win32":
    import fcntl

_FORMAT_FILE: Final = "m3-store.json"
_LOCK_FILE: Final = "m3-store.lock"
_ENGINE: Final = "engine"
_UNFINISHED: Final = "engine.unfinished"
_NEW_LOG: Final = "m3-store.log.new"
_WRITTEN_LOG: Final = "open-"
"""How the names of the files begin that the engine writes its log to; full ones are renamed."""


_HERE: Final[weakref.WeakValueDictionary[tuple[int, Path], StoreFolder]] = weakref.WeakValueDictionary()
"""What is open in this process, by its number and the folder's path."""


class StoreFolder:
    """A folder that one process has open.

    It holds `m3-store.json` with the format, a lock file, and the engine's own folder.

    Args:
        path: Made if it is not there. An empty folder is taken; one with anything else in it is not. `~` is the user's
            home.

    Attributes:
        path: The folder, absolute.
        is_read_only: Whether nothing may be written there, so that the engine's files are those of a copy elsewhere.
        engine: Where the engine's files are; there as soon as there are records.
        log: Where the engine writes every change down first, to do it again after a crash.
        unfinished: Where the engine's files are made, before they get their place.

    Raises:
        NotADirectoryError: If it is a file.
        ValueError: If there is something else in it, or a later version of this package made it.
        BlockingIOError: If it is open already, in this process or another.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().resolve()
        except RuntimeError as error:
            raise ValueError(f"there is no home folder for {os.fspath(path)!r}: write the path out") from error
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"a store is a folder, but {self.path} is a file")
        self.is_read_only = self.path.exists() and not os.access(self.path, os.W_OK)
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._lock: FileLock | None = None
        if self.is_read_only:
            self._copy = tempfile.TemporaryDirectory(prefix="m3-store-", ignore_cleanup_errors=True)
        else:
            self.path.mkdir(parents=True, exist_ok=True)
        work = Path(self._copy.name) if self._copy else self.path
        self.engine, self.unfinished = work / _ENGINE, work / _UNFINISHED
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
        """Keep other processes out."""
        lock = FileLock(self.path / _LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise self._taken() from error
        self._lock = lock
        _HERE[os.getpid(), self.path] = self

    def _copy_engine(self) -> None:
        """Copy the engine's files, while no other process has the folder open."""
        with suppress(FileNotFoundError), (self.path / _LOCK_FILE).open("rb") as file:
            if sys.platform != "win32":
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise self._taken() from error
            self._copy_files()
            return
        self._copy_files()

    def _copy_files(self) -> None:
        if (self.path / _ENGINE).exists():
            shutil.copytree(self.path / _ENGINE, self.engine)

    def _taken(self) -> BlockingIOError:
        if (os.getpid(), self.path) in _HERE:
            return BlockingIOError(
                f"{self.path} is open already in this process: go on with that store object, or close() it first"
            )
        return BlockingIOError(
            f"{self.path} is open already in another process, and only one can have it: close it there, or let both "
            "use it through m3 serve MODEL --store FOLDER, or use a Qdrant server: open_store('http://...')"
        )

    def read(self) -> StoreFormat | None:
        """Return the store's format; None if the store is new.

        Raises:
            ValueError: If the file is damaged, or not this package's, or a later version's.
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
        """Write the format down: after a crash there is the old or the new, and nothing between."""
        new = self.path / (_FORMAT_FILE + ".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(format_.to_dict(), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path / _FORMAT_FILE)
        sync(self.path)

    def finish(self) -> None:
        """Move the engine's files to their place, at once or not at all."""
        self.unfinished.rename(self.engine)
        sync(self.path)

    def discard_unfinished(self) -> None:
        """Delete what a creation that failed has left: it never held a record."""
        if self.unfinished.exists():
            shutil.rmtree(self.unfinished)

    def renew_log(self) -> bool:
        """Copy the log that goes on being written into new files, and return whether that could be done.

        After a failed sync the system shows what the disk does not have, and what is written behind such a hole is not
        found after a power cut.
        """
        new = self.engine.parent / _NEW_LOG
        try:
            for log in self.log.glob(_WRITTEN_LOG + "*"):
                written = log.read_bytes()
                if not written:
                    continue
                with new.open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, len(written))  # as the engine does: mapped memory needs it
                    file.write(written.rstrip(b"\0"))
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(log)
            sync(self.log)
        except OSError:
            new.unlink(missing_ok=True)
            return False
        return True

    def unlock(self) -> None:
        """Let others open the folder."""
        if self._lock is not None:
            _HERE.pop((os.getpid(), self.path), None)
            self._lock.release()
        if self._copy is not None:
            self._copy.cleanup()

    def _refuse_foreign(self) -> None:
        """Look before the first file is written into the folder."""
        ours = {_FORMAT_FILE, _FORMAT_FILE + ".new", _LOCK_FILE, _NEW_LOG}
        names = {entry.name for entry in self.path.iterdir()}
        if _FORMAT_FILE not in names and (foreign := sorted(names - ours)):
            raise ValueError(
                f"{self.path} is no store of this package (it holds {foreign[0]!r}), and is left as it is: choose an "
                "empty or a new folder"
            )

    def _tidy(self) -> None:
        """Undo a creation that was interrupted: it never held a record."""
        format_ = self.read()
        if not self.unfinished.exists():
            return
        if format_ is not None and not self.engine.exists():
            self.write(replace(format_, modes=(), dense_dim=0, token_dim=0))
        self.discard_unfinished()


def sync_log(folder: Path) -> None:
    """Make an engine's log durable; other threads run meanwhile.

    On Linux this covers what was written through memory maps, too.

    Raises:
        OSError: If the disk fails, or there is no log.
    """
    names = [file.name for file in folder.iterdir()]
    if not any(name.startswith(_WRITTEN_LOG) for name in names):
        raise FileNotFoundError(errno.ENOENT, "the engine's log is not where it should be", str(folder))
    for name in names:
        try:
            sync(folder / name)
        except FileNotFoundError:
            if name.startswith(_WRITTEN_LOG):
                raise
    sync(folder)


def sync_tree(folder: Path) -> None:
    """Make a folder's files durable, with all below it that the engine does not delete meanwhile; other threads run."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for path in (*names, ""):
            with suppress(FileNotFoundError):
                sync(Path(parent, path))


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable where folders can be opened (not on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
