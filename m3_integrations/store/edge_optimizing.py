"""Runs `optimize` in another process, because the engine holds the interpreter for minutes and searches must go on.

The process copies the engine's files and optimises the copy, so the store is unchanged until the copy is whole. The
process ends when the program that started it does.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from m3_integrations.store.edge_config import as_config
from m3_integrations.store.edge_folder import StoreFolder
from m3_integrations.store.edge_size import allocated_bytes
from m3_integrations.store.points import StoreFormat
from m3_integrations.store.syncing import sync_tree

_PROGRAM: Final = "from m3_integrations.store.edge_optimizing import optimize_copy; optimize_copy()"

_BEGUN: Final = "begun"
_DONE: Final = "done"
"""The first and the last line that `optimize_copy` prints. The exit status alone proves nothing: Python reports 0 if
another part of the program, or the system, has taken the status."""

_BLOCK_BYTES: Final = 1 << 17


class Optimizer:
    """One run of `optimize` in another process.

    Args:
        place: The store's folder. Nothing changes the engine's files while `run` works.

    Attributes:
        copy: The folder of the optimised copy.
    """

    def __init__(self, place: StoreFolder) -> None:
        self.copy = place.new_copy()
        self._place = place
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def run(self, format_: StoreFormat, n_records: int) -> bool:
        """Make an optimised copy that is durable, and return whether it is there. Other threads can run meanwhile.

        Args:
            format_: The store's format.
            n_records: The number of records in the engine.

        Returns:
            False if Python cannot be started a second time, for example in a frozen program.

        Raises:
            OSError: If the engine fails, the disk is full, or the process was killed or stopped.
        """
        process = self._start(format_, n_records)
        if process is None:
            return False
        with process:
            try:
                said = (process.stdout.read() if process.stdout else "").splitlines()
                process.wait()
            except BaseException:  # interrupted by the keyboard
                self.stop()
                raise
        if self._is_stopped:
            raise self.failed("it was stopped")
        if said[-1:] == [f"{_DONE} {n_records}"]:
            return True
        if process.returncode < 0:
            raise self.failed(f"its process was ended by signal {-process.returncode}, perhaps for lack of memory")
        if said[:1] == [_BEGUN]:
            raise self.failed(said[-1] if len(said) > 1 else "its process ended without a result")
        return False

    def _start(self, format_: StoreFormat, n_records: int) -> subprocess.Popen[str] | None:
        if getattr(sys, "frozen", False) or not sys.executable:
            return None
        given = [str(self._place.engine), str(self.copy), json.dumps(format_.to_dict()), str(n_records)]
        with self._lock:
            if self._is_stopped:
                raise self.failed("it was stopped")
            with suppress(OSError):  # also if the working folder is gone
                paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]  # noqa: PTH100
                self._process = subprocess.Popen(  # noqa: S603 - this Python and this package, no shell
                    [sys.executable, "-c", _PROGRAM, *given],
                    stdin=subprocess.PIPE,  # open as long as this process lives, see `_end_with_parent`
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="utf-8",
                    errors="replace",
                    env=os.environ
                    | {
                        "PYTHONPATH": os.pathsep.join(paths),
                        "PYTHONSAFEPATH": "1",
                        "PYTHONIOENCODING": "utf-8:replace",
                    },
                )
            return self._process

    def stop(self) -> None:
        """End the process. `run` raises OSError then."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def discard(self) -> None:
        """Delete the copy, unless it has become the store's."""
        shutil.rmtree(self.copy, ignore_errors=True)

    def failed(self, why: str) -> OSError:
        """Return an error that says why the store was not changed."""
        return OSError(f"the store in {self._place.path} could not be optimised: {why}. The store was not changed")


def optimize_copy() -> None:
    """Copy an engine's files and optimise the copy; print `_BEGUN` first, and last `_DONE` or what failed.

    The arguments of the program are the folder of the files, that of the copy, the store's format as JSON, and the
    number of records.
    """
    _end_with_parent()
    engine, copy, format_, n_records = sys.argv[1:]
    _say(_BEGUN)
    try:
        shutil.copytree(engine, copy, copy_function=copy_sparse)
        shard = edge.EdgeShard.load(copy, as_config(StoreFormat.from_dict(engine, json.loads(format_))))
        shard.optimize()
        shard.flush()
        found = shard.count(edge.CountRequest(exact=True))
        shard.close()
        sync_tree(Path(copy))
    except Exception as error:  # the engine raises Exception itself
        _say(" ".join(str(error).split()))
        return
    if found == int(n_records):
        _say(f"{_DONE} {n_records}")
    else:  # the engine opens a folder whose records are lost
        _say(f"{n_records} records were expected in the copy, but {found} are there")


def copy_sparse(source: str, target: str) -> None:
    """Copy a file without its blocks of zeros if it takes less room than its length, as most of the engine's files do.

    Room that the engine has reserved, such as that of its log, stays reserved: it maps its files, and a page without
    room kills the process.
    """
    if allocated_bytes(Path(source)) >= Path(source).stat().st_size:
        shutil.copyfile(source, target)
        return
    zeros = bytes(_BLOCK_BYTES)
    with Path(source).open("rb") as read, Path(target).open("wb") as written:
        while block := read.read(_BLOCK_BYTES):
            if block == zeros[: len(block)]:
                written.seek(len(block), os.SEEK_CUR)
            else:
                written.write(block)
        written.truncate(read.tell())


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Let the system end this process when the other end of its standard input is closed.

    A thread could not watch it, as the engine holds the interpreter.
    """
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 - not on Windows

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    with suppress(OSError):  # where a pipe cannot do this, an orphan works on a copy that nobody uses
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # closed before
        sys.exit("the program that started this one has ended")
